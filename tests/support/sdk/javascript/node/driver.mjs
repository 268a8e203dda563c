// centrifuge-js under Node, which has no WebSocket and no EventSource of its own.

import { createInterface } from "node:readline";
import { Centrifuge, UnauthorizedError } from "centrifuge";
import { Centrifuge as ProtobufCentrifuge } from "centrifuge/build/protobuf";
import { EventSource } from "eventsource";
import WebSocket from "ws";
import { drive, listen } from "./client.mjs";

const config = JSON.parse(process.argv[2]);
const emit = (object) => process.stdout.write(`${JSON.stringify(object)}\n`);
const platform = { options: { websocket: WebSocket, eventsource: EventSource }, Unauthorized: UnauthorizedError };
const obey =
  config.transport === "eventsource"
    ? listen(EventSource, config, emit)
    : drive(config.encoding === "protobuf" ? ProtobufCentrifuge : Centrifuge, config, platform, emit);
for await (const line of createInterface({ input: process.stdin })) obey(JSON.parse(line));
process.exit(0);
