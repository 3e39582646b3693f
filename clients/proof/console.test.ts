/** The operator's console, used as an operator uses it. The test makes the picture in the README. */

import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import type { ChaosProxy } from "@mainstay/chaos";
import type { Browser, Page } from "puppeteer-core";
import { CONSOLE, operators } from "../page/build.mjs";
import { CHROMIUM, launch } from "./browsers.js";
import { cableTo, sever } from "./cable.js";
import { MAINSTAY, Server } from "./gateway.js";
import { until } from "./stage.js";

const inWorkspace = (path: string) => fileURLToPath(new URL(`../../${path}`, import.meta.url));
/** With `UPDATE=1` the picture of the README is made anew. */
const PICTURE = inWorkspace(process.env["UPDATE"] ? "docs/console.png" : "target/xtask/console.png");
const BOUND = { timeout: 40_000, polling: 50 };
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const TOKEN = "0123456789abcdef";

let browser: Browser;
const servers: Server[] = [];
before(async () => {
  browser = await launch(CHROMIUM);
});
after(async () => {
  await browser.close();
  // A test that fails leaves its server.
  await Promise.all(servers.map((server) => server.kill()));
});

async function start(flags: string[] = []): Promise<Server> {
  const server = await Server.start(MAINSTAY, ["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--heartbeat", "1s", ...flags]);
  servers.push(server);
  return server;
}

/** Opens the console; collects its errors, and its requests to other servers. */
async function open(server: Server, { width = 1100, height = 900 } = {}): Promise<{ page: Page; complaints: string[] }> {
  const page = await browser.newPage();
  await page.setViewport({ width, height });
  const complaints: string[] = [];
  page.on("console", (message) => complaints.push(message.text()));
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("request", (request) => {
    const { protocol, origin } = new URL(request.url());
    if (protocol !== "data:" && origin !== server.admin) complaints.push(`asks ${request.url()}`);
  });
  await page.goto(`${server.admin}/`);
  return { page, complaints };
}

const text = (page: Page, selector: string) => page.$eval(selector, (element) => element.textContent ?? "");

/** Waits until an element shows what matches. */
async function shows(page: Page, selector: string, pattern: RegExp): Promise<void> {
  const matches = (at: string, source: string) => new RegExp(source).test(document.querySelector(at)?.textContent ?? "");
  await page.waitForFunction(matches, BOUND, selector, pattern.source);
}

const isShown = (page: Page, selector: string) => page.$eval(selector, (element) => element.checkVisibility());

/** Answers a question once; the button waits half a second for the second answer. */
async function yes(page: Page): Promise<void> {
  await page.waitForFunction(() => !document.querySelector<HTMLButtonElement>("#ask-yes")!.disabled, BOUND);
  await page.click("#ask-yes");
}

/** Opens the live page, which has a session and a plain connection, over this cable. */
async function visit(cable: ChaosProxy): Promise<Page> {
  const page = await browser.newPage();
  await page.goto(`http://127.0.0.1:${cable.port}/`);
  await page.waitForFunction(() => Number(document.querySelector("#epoch")!.textContent) >= 1, BOUND);
  return page;
}

test("console.html is up to date with its sources", async () => {
  assert.equal(readFileSync(CONSOLE, "utf8"), await operators(), "run `node page/build.mjs` in clients");
});

test("the operator watches a cut, finds the session, reads why it reconnected, and ends it", async () => {
  const server = await start();
  const cable = await cableTo(server.port);
  const live = await visit(cable);
  const { page, complaints } = await open(server);
  await page.bringToFront();
  await shows(page, "#attached", /^2$/);
  assert.equal(await text(page, "#state"), "ready");

  await sever(cable);
  await shows(page, "#parked", /^1$/);
  await shows(page, "#longest", /^[0-9a-f]{16} \d/);
  const id = (await text(page, "#longest button")).trim();
  await cable.liftAll();
  await live.bringToFront();
  await live.waitForFunction(() => Number(document.querySelector("#epoch")!.textContent) >= 2, BOUND);
  await page.bringToFront();
  await shows(page, "#resumes", /^1$/);
  await shows(page, "#losses", /\d/);

  // By the keyboard alone.
  await page.keyboard.press("/");
  await page.keyboard.type(id.slice(0, 9));
  await page.keyboard.press("Enter");
  await shows(page, "#found", /^1 found$/);
  assert.match(await text(page, "#sessions tbody"), /attached.*127\.0\.0\.1:\d+/);
  await page.focus("#sessions button");
  await page.keyboard.press("Enter");
  await shows(page, "#why", /connection 1 was lost: the client .*; the client was back after \d/);
  await shows(page, "#timeline", /the session resumed/);
  mkdirSync(inWorkspace("target/xtask"), { recursive: true });
  await page.screenshot({ path: PICTURE as `${string}.png`, fullPage: true });

  // One answer changes nothing, and neither does an answer after a cancelled question.
  await page.click("#end");
  await yes(page);
  await page.click("#ask-no");
  await page.click("#end");
  await yes(page);
  await page.click("#ask-no");
  assert.equal((await (await fetch(`${server.admin}/sessions/${id}`)).json()).session.id, id);
  await page.click("#end");
  await yes(page);
  await yes(page);
  await shows(page, "#timeline", /an operator ended it, with code 4500/);
  assert.deepEqual(complaints, [], "no request to other servers, none that its policy forbids, no error");
  await page.close();
  await live.close();
  await cable.close();
  await server.kill();
});

test("in a cluster the list has the node of each session, names the nodes that did not answer, and asks the session's node", async () => {
  const server = await start();
  const { page } = await open(server);
  await shows(page, "#state", /ready/);
  assert.equal(await isShown(page, "#node"), false);
  const asked: string[] = [];
  const session = (id: string, node: string) => ({
    ...{ id, node, state: "attached", epoch: 1, age_seconds: 7, away_seconds: null, rtt_seconds: null },
    ...{ queue_bytes: { client: 0, backend: 0 }, address: null, route: null, path: "/", subject: "alice" },
  });
  const [one, two] = [session("00000000000000a1", "aaaaaaaaaaaaaaaa"), session("plain-7-b2", "bbbbbbbbbbbbbbbb")];
  const unreachable = [{ node: "cccccccccccccccc", address: null, why: "it did not answer within 1 s" }];
  const answers = (path: string, method: string) => {
    if (method === "DELETE") return { ended: 1 };
    if (path.startsWith("/sessions?") && !path.includes("after=")) return { sessions: [one], next: "aaaaaaaaaaaaaaaa:5", unreachable, table_complete: true };
    if (path.startsWith("/sessions?")) return { sessions: [two], next: null, unreachable: [], table_complete: false };
    return { session: path.includes("plain") ? two : one, reconnects: [], timeline: [] };
  };
  await page.setRequestInterception(true);
  page.on("request", (request) => {
    const { pathname, search } = new URL(request.url());
    if (!pathname.startsWith("/sessions")) return void request.continue();
    asked.push(`${request.method()} ${pathname}${search}`);
    void request.respond({ contentType: "application/json", body: JSON.stringify(answers(pathname + search, request.method())) });
  });
  await page.focus("#text");
  await page.keyboard.press("Enter");
  await shows(page, "#found", /^1 found, and there may be more; without node c{16} \(it did not answer within 1 s\)$/);
  assert.ok(await isShown(page, "#node"));
  await page.click("#more");
  await shows(page, "#found", /^2 found; some nodes may not be known yet$/);
  assert.deepEqual(await page.$$eval("#sessions td.node", (cells) => cells.map((cell) => cell.textContent)), [one.node, two.node]);
  await page.click("#sessions tr:nth-child(2) button");
  await shows(page, "#about", /at node b{16}/);
  await page.click("#end");
  await yes(page);
  await yes(page);
  await page.waitForFunction(() => !document.querySelector<HTMLDialogElement>("#ask")!.open, BOUND);
  await until("the node of the session is asked to end it", () => asked.includes("DELETE /sessions/plain-7-b2?node=bbbbbbbbbbbbbbbb"));
  assert.ok(asked.some((request) => request.includes("after=aaaaaaaaaaaaaaaa%3A5")), asked.join());
  assert.ok(asked.includes("GET /sessions/plain-7-b2?node=bbbbbbbbbbbbbbbb"), asked.join());
  await page.close();
  await server.kill();
});

test("the drain asks twice", async () => {
  const server = await start(["--drain", "1s"]);
  const { page } = await open(server);
  await shows(page, "#state", /ready/);
  await page.click("#drain");
  await yes(page);
  await page.click("#ask-no");
  assert.ok(await server.isReady());
  await page.click("#drain");
  await yes(page);
  await yes(page);
  assert.equal(await server.ended(), 0);
  await page.close();
});

test("where a token is set, the page asks for it, keeps it in the tab, and asks again when it is wrong", async () => {
  const file = join(mkdtempSync(join(tmpdir(), "mainstay-console-")), "token");
  writeFileSync(file, `${TOKEN}\n`);
  const server = await start(["--admin-token-file", file]);
  const { page } = await open(server);
  await page.waitForSelector("#login:not([hidden])", BOUND);
  assert.equal(await isShown(page, "#console"), false);
  await page.type("#token", "wrong-wrong-wrong");
  await page.keyboard.press("Enter");
  await shows(page, "#refused", /refused this token/);
  await page.type("#token", TOKEN);
  await page.keyboard.press("Enter");
  await shows(page, "#state", /ready/);
  assert.ok(await isShown(page, "#console"));
  await page.reload();
  await shows(page, "#state", /ready/);
  assert.equal(await page.evaluate(() => localStorage.length + document.cookie.length), 0, "no longer than the tab");
  await page.close();
  await server.kill();
});

test("what a client sends is text on the page: the page has no means to make markup of it", async () => {
  assert.doesNotMatch(await operators(), /innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|setHTML/);
});

test("axe reports no violation, in the light and in the dark theme, and the page fits a phone", async () => {
  const server = await start();
  const cable = await cableTo(server.port);
  const live = await visit(cable);
  const { page } = await open(server, { width: 320, height: 640 });
  await page.bringToFront();
  await shows(page, "#attached", /^2$/);
  await page.focus("#text");
  await page.keyboard.press("Enter");
  await shows(page, "#found", /^2 found$/);
  await page.click("#sessions button");
  await shows(page, "#timeline", /attached/);
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(width <= 320, `${width} px wide`);
  const backgrounds = new Set<string>();
  for (const value of ["light", "dark"]) {
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value }]);
    backgrounds.add(await page.evaluate(() => getComputedStyle(document.body).backgroundColor));
    await page.evaluate(AXE);
    const found = await page.evaluate("axe.run().then(({ violations }) => violations.map(({ id, nodes }) => [id, nodes.map(({ target }) => String(target))]))");
    assert.deepEqual(found, [], value);
  }
  assert.equal(backgrounds.size, 2);
  await page.close();
  await live.close();
  await cable.close();
  await server.kill();
});
