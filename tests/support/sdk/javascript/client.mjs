// One client of centrifuge-js, driven by words; for Node and for pages. `tests/support/sdk` has the
// language. `emit(object)` writes a line; the function that is returned takes one.


export function drive(Centrifuge, config, platform, emit) {
  const protobuf = config.encoding === "protobuf";
  const encoded = (data) =>
    protobuf && data !== undefined && data !== null ? new TextEncoder().encode(JSON.stringify(data)) : data;
  const plain = (value) => {
    if (value instanceof Uint8Array) return value.length ? JSON.parse(new TextDecoder().decode(value)) : null;
    if (typeof value?.toNumber === "function") return value.toNumber(); // a 64-bit number of Protobuf
    if (Array.isArray(value)) return value.map(plain);
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, each]) => [snake(key), plain(each)]));
    }
    return value;
  };

  const waiting = new Map();
  let asked = 0;
  const ask = (channel) =>
    new Promise((resolve, reject) => {
      asked += 1;
      waiting.set(asked, (token) => (token === null ? reject(new platform.Unauthorized("no")) : resolve(token)));
      emit({ event: "token", number: asked, channel });
    });

  const base = `127.0.0.1:${config.port}`;
  const endpoint =
    config.transport === "websocket"
      ? `ws://${base}/connection/websocket`
      : [{ transport: config.transport, endpoint: `http://${base}/connection/${config.transport}` }];
  const client = new Centrifuge(endpoint, {
    ...platform.options,
    emulationEndpoint: `http://${base}/emulation`,
    token: config.token,
    data: encoded(config.data),
    getToken: config.asks ? () => ask("") : null,
    minReconnectDelay: 100,
    maxReconnectDelay: 500,
  });

  const tell = (event, context, more) => {
    const fields = plain(context ?? {});
    if (event === "error") Object.assign(fields, { server_code: context.error?.code });
    emit({ ...fields, ...more, event });
  };
  for (const name of ["connecting", "connected", "disconnected", "error", "message"]) {
    client.on(name, (context) => tell(name, context));
  }
  for (const name of ["subscribing", "subscribed", "unsubscribed", "publication", "join", "leave"]) {
    client.on(name, (context) => tell(`server_${name}`, context));
  }

  const commands = {
    connect: () => client.connect(),
    disconnect: () => client.disconnect(),
    subscribe({ channel, options }) {
      let subscription = client.getSubscription(channel);
      if (subscription === null) {
        const { asks, join_leave, data, ...rest } = options;
        subscription = client.newSubscription(channel, {
          ...rest,
          joinLeave: join_leave ?? false,
          data: encoded(data),
          getToken: asks ? () => ask(channel) : null,
          minResubscribeDelay: 100,
          maxResubscribeDelay: 500,
        });
        for (const name of ["subscribing", "subscribed", "unsubscribed", "publication", "join", "leave", "error"]) {
          subscription.on(name, (context) => tell(name, context, { channel }));
        }
      }
      subscription.subscribe();
    },
    unsubscribe: ({ channel }) => client.getSubscription(channel).unsubscribe(),
    publish: ({ channel, data }) => client.publish(channel, encoded(data)),
    presence: async ({ channel }) => (await client.presence(channel)).clients,
    presence_stats: ({ channel }) => client.presenceStats(channel),
    history: ({ channel, limit, since, reverse }) => client.history(channel, { limit, since, reverse }),
    rpc: async ({ method, data }) => (await client.rpc(method, encoded(data))).data,
    send: ({ data }) => client.send(encoded(data)),
  };

  emit({ event: "ready" });
  return async (line) => {
    if (line.do === "token") {
      waiting.get(line.number)(line.token);
      waiting.delete(line.number);
      return;
    }
    try {
      const result = await commands[line.do](line);
      emit({ id: line.id, result: plain(result ?? null) });
    } catch (error) {
      emit({ id: line.id, error: { code: error.code ?? 0, message: error.message ?? String(error) } });
    }
  };
}

const snake = (key) => key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

// A plain EventSource: no protocol but that of the browser, which resumes by itself.
export function listen(EventSource, config, emit) {
  const source = new EventSource(`http://127.0.0.1:${config.port}${config.data.path}`);
  source.onopen = () => emit({ event: "open" });
  source.onerror = () => emit({ event: "lost" });
  source.onmessage = (message) =>
    emit({ event: "message", id: message.lastEventId, data: JSON.parse(message.data) });
  emit({ event: "ready" });
  return async (line) => {
    if (line.do === "close") source.close();
    emit({ id: line.id, result: null });
  };
}
