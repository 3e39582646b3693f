/** The hook, in React with a document, against a plain server that counts its connections. */

import assert from "node:assert/strict";
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { test, type TestContext } from "node:test";
import type { MainstaySocket, Options } from "@mainstay/client";
import { useMainstay } from "@mainstay/client/react";
import { Window } from "happy-dom";
import { createElement, type ReactNode, StrictMode } from "react";
import { WebSocket, WebSocketServer } from "ws";
import { until } from "./support.js";

const LIMIT = { timeout: 20_000 };
const window = new Window();
Object.assign(globalThis, { window, document: window.document });
globalThis.navigator ??= window.navigator as any;
// React looks for a document when it is loaded.
const { createRoot } = await import("react-dom/client");
const { renderToString } = await import("react-dom/server");

const options: Options = { WebSocket };
/** The socket and the status of each render. */
let renders: { socket: MainstaySocket | undefined; status: string }[] = [];

function Status({ url }: { url: string | undefined }) {
  const render = useMainstay(url, options);
  renders.push(render);
  return createElement("p", null, render.status);
}

test("a mounted component shows the status of its socket, and renders again when it changes", LIMIT, async (t) => {
  const { url, connections } = await serve(t);
  const page = mount(t);
  page.render(createElement(Status, { url }));
  await page.shows("attached");
  connections[0]!.terminate();
  await until(() => connections.length === 2);
  await page.shows("attached");
  renders.at(-1)!.socket!.close();
  await page.shows("ended");
  const statuses = renders.map(({ status }) => status);
  const changes = statuses.filter((status, index) => status !== statuses[index - 1]);
  assert.deepEqual(changes, ["connecting", "attached", "waiting", "connecting", "attached", "closing", "ended"]);
});

test("a component that unmounts closes its socket", LIMIT, async (t) => {
  const { url, connections } = await serve(t);
  const page = mount(t);
  page.render(createElement(Status, { url }));
  await page.shows("attached");
  const { socket } = renders.at(-1)! as { socket: MainstaySocket };
  page.render(null);
  await until(() => connections[0]!.readyState === connections[0]!.CLOSED);
  assert.match(socket.status, /closing|ended/);
});

test("another render of the same url keeps the socket; another url is another socket, and the first is closed", LIMIT, async (t) => {
  const { url, connections } = await serve(t);
  const page = mount(t);
  page.render(createElement(Status, { url }));
  await page.shows("attached");
  const first = renders.at(-1)!.socket;
  const count = renders.length;
  page.render(createElement(Status, { url }));
  await until(() => renders.length > count);
  assert.equal(renders.at(-1)!.socket, first);
  page.render(createElement(Status, { url: `${url}/other` }));
  await until(() => connections.length === 2);
  await page.shows("attached");
  assert.notEqual(renders.at(-1)!.socket, first);
  await until(() => connections[0]!.readyState === connections[0]!.CLOSED && first!.status === "ended");
  assert.equal(connections.length, 2);
});

test("without a url there is no socket; the first url makes one, and none again closes it", LIMIT, async (t) => {
  const { url, connections } = await serve(t);
  const page = mount(t);
  page.render(createElement(Status, { url: undefined }));
  await page.shows("suspended");
  assert.equal(renders.at(-1)!.socket, undefined);
  page.render(createElement(Status, { url }));
  await page.shows("attached");
  page.render(createElement(Status, { url: undefined }));
  await page.shows("suspended");
  assert.equal(renders.at(-1)!.socket, undefined);
  await until(() => connections[0]!.readyState === connections[0]!.CLOSED);
  assert.equal(connections.length, 1);
});

test("StrictMode, which mounts twice, leaves one socket open and dials once", LIMIT, async (t) => {
  const { url, connections } = await serve(t);
  const page = mount(t);
  page.render(createElement(StrictMode, null, createElement(Status, { url })));
  await page.shows("attached");
  assert.equal(connections.length, 1);
  assert.equal(connections[0]!.readyState, connections[0]!.OPEN);
});

test("on a server the hook renders `connecting` and opens nothing", LIMIT, async (t) => {
  const { url, connections } = await serve(t);
  renders = [];
  assert.equal(renderToString(createElement(Status, { url })), "<p>connecting</p>");
  assert.deepEqual(renders, [{ socket: undefined, status: "connecting" }]);
  assert.equal(connections.length, 0);
});

/** A page with one place for a component. */
function mount(t: TestContext) {
  renders = [];
  const place = window.document.createElement("div");
  const root = createRoot(place as any);
  t.after(() => root.unmount());
  const render = (element: ReactNode) => root.render(element);
  const shows = (text: string) => until(() => place.textContent === text);
  return { render, shows };
}

async function serve(t: TestContext): Promise<{ url: string; connections: WebSocket[] }> {
  const connections: WebSocket[] = [];
  const server = new WebSocketServer({ host: "127.0.0.1", port: 0 });
  // The server chooses the first protocol that is offered, which is the plain one.
  server.on("connection", (connection) => connections.push(connection));
  await once(server, "listening");
  t.after(() => server.close());
  return { url: `ws://127.0.0.1:${(server.address() as AddressInfo).port}`, connections };
}
