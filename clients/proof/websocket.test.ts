/**
 * The client as the `WebSocket` of a page. These tests need a browser: it has the classes that Node lacks, a base URL, and a
 * `WebSocket` of its own to compare with. Every rule is checked with that first, and then with ours in its place.
 */

import assert from "node:assert/strict";
import http from "node:http";
import type { AddressInfo } from "node:net";
import { after, before, describe, test } from "node:test";
import { build } from "esbuild";
import type { Browser, Page } from "puppeteer-core";
import { WebSocketServer } from "ws";
import { CHROMIUM, FIREFOX, isThere, launch } from "./browsers.js";

const ENTRIES = [undefined, "@mainstay/client", "@mainstay/client/plain"];

const server = http.createServer((_, response) => response.setHeader("content-type", "text/html").end('<!doctype html>'));
const sockets = new WebSocketServer({ server });
let site = "";
before(async () => {
  sockets.on("connection", (socket, { url }) => {
    socket.on("message", (data, isBinary) => (`${data}` === "end" ? socket.close(4001, "bye") : socket.send(isBinary ? data : `${url} ${data}`)));
  });
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  site = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
});
after(() => {
  server.close();
  server.closeAllConnections();
});

for (const engine of [CHROMIUM, FIREFOX]) {
  const skip = engine === FIREFOX && !isThere(engine) && engine.install;
  describe(`the WebSocket of a page in ${engine.name}`, { skip }, () => {
    let browser: Browser;
    before(async () => void (browser = await launch(engine)));
    after(() => browser.close());

    for (const entry of ENTRIES) {
      test(entry ? `may be the class of ${entry}` : "is what the browser has", { timeout: 60_000 }, async () => {
        const page = await browser.newPage();
        await page.goto(`${site}below/`);
        // The loader of these tests calls this in every function.
        await page.evaluate("globalThis.__name = (named) => named");
        if (entry) await page.evaluate(await bundle(entry));
        assert.deepEqual(await seen(page), {
          url: `${site.replace("http", "ws")}below/echo?a`,
          first: "MessageEvent /below/echo?a hello",
          origin: site.replace("http", "ws").slice(0, -1),
          blob: "Blob 3",
          order: ["listener", "handler", "later"],
          refused: ["SyntaxError", "SyntaxError", "SyntaxError", "InvalidAccessError", "SyntaxError", "TypeError"],
          closing: 2,
          closed: ["CloseEvent", true, 3],
        });
        await page.close();
      });
    }
  });
}

/** A script that replaces the browser's class by this one. */
async function bundle(entry: string): Promise<string> {
  const contents = `import { MainstaySocket } from "${entry}"; globalThis.WebSocket = MainstaySocket;`;
  const { outputFiles } = await build({ stdin: { contents, resolveDir: import.meta.dirname }, bundle: true, format: "iife", write: false });
  return outputFiles[0]!.text;
}

const seen = (page: Page) =>
  page.evaluate(async () => {
    const socket = new WebSocket("echo?a");
    const order: string[] = [];
    socket.addEventListener("open", () => order.push("listener"));
    socket.onopen = () => order.push("never");
    socket.addEventListener("open", () => order.push("later"));
    socket.onopen = () => order.push("handler");
    const nextMessage = () => new Promise<MessageEvent>((resolve) => (socket.onmessage = resolve));
    const refused: string[] = [];
    const refuses = (act: () => unknown) => {
      try {
        act();
        refused.push("nothing");
      } catch (error) {
        refused.push((error as Error).name);
      }
    };
    await new Promise((resolve) => socket.addEventListener("open", resolve));
    socket.send("hello");
    const first = await nextMessage();
    socket.send(new Blob(["abc"]));
    const { data } = await nextMessage();
    refuses(() => new WebSocket("echo", "a b"));
    refuses(() => new WebSocket("echo", ["x", "x"]));
    refuses(() => new WebSocket("echo#a"));
    refuses(() => socket.close(1001));
    refuses(() => socket.close(1000, "x".repeat(124)));
    refuses(() => new (WebSocket as any)());
    socket.close(4001, "bye");
    const closing = socket.readyState;
    const closed = await new Promise<CloseEvent>((resolve) => (socket.onclose = resolve));
    return {
      url: socket.url,
      first: `${first.constructor.name} ${first.data}`,
      origin: first.origin,
      blob: `${data.constructor.name} ${data.size}`,
      order,
      refused,
      closing,
      closed: [closed.constructor.name, closed.wasClean, socket.readyState],
    };
  });
