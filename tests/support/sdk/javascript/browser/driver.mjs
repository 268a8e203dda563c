// centrifuge-js, and a plain EventSource, in a page of a real headless Chromium.

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";

const LAUNCH_TIMEOUT_MS = 30_000; // less than what a test waits for a driver to be ready
const here = dirname(fileURLToPath(import.meta.url));
const centrifuge = join(dirname(createRequire(import.meta.url).resolve("centrifuge")), "..", "dist", "centrifuge.js");
const page_html = `<!doctype html><script src="/centrifuge.js"></script><script type="module">
  import { drive, listen } from "/client.mjs";
  window.start = (config) => {
    const emit = (object) => window.emitLine(JSON.stringify(object));
    const platform = { options: {}, Unauthorized: Centrifuge.UnauthorizedError ?? Error };
    window.obey =
      config.transport === "eventsource"
        ? listen(EventSource, config, emit)
        : drive(Centrifuge, config, platform, emit);
  };
  window.loaded = true;
</script>`;
const files = {
  "/": ["text/html", async () => page_html],
  "/centrifuge.js": ["text/javascript", () => readFile(centrifuge)],
  "/client.mjs": ["text/javascript", () => readFile(join(here, "client.mjs"))],
};

const config = JSON.parse(process.argv[2]);
const server = createServer(async (request, response) => {
  const [type, content] = files[request.url] ?? ["text/plain", async () => ""];
  response.setHeader("Content-Type", type);
  response.end(await content());
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));

let browser, page;
try {
  browser = await puppeteer.launch({
    executablePath: process.env.CHROMIUM || (await chromium.executablePath()),
    args: chromium.args,
    headless: "shell",
    timeout: LAUNCH_TIMEOUT_MS,
  });
  page = await browser.newPage();
} catch (error) {
  const problem = `Chromium does not start here: ${error.message.trim()}`;
  process.stdout.write(`${JSON.stringify({ event: "ready", problem })}\n`, () => process.exit(0));
  await new Promise(() => {});
}
page.on("pageerror", (error) => process.stderr.write(`page: ${error}\n`));
await page.exposeFunction("emitLine", (line) => process.stdout.write(`${line}\n`));
await page.goto(`http://127.0.0.1:${server.address().port}/`);
await page.waitForFunction(() => window.loaded);
await page.evaluate((given) => window.start(given), config);
for await (const line of createInterface({ input: process.stdin })) {
  page.evaluate((given) => window.obey(given), JSON.parse(line));
}
await browser.close();
process.exit(0);
