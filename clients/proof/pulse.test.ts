/** The live page of `mainstay serve`, used as a person uses it. The test makes the picture in the README. */

import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import type { Browser, Page } from "puppeteer-core";
import { page as built, TARGETS } from "../page/build.mjs";
import { CHROMIUM, FIREFOX, isThere, launch } from "./browsers.js";
import { MAINSTAY, Server } from "./gateway.js";

const inWorkspace = (path: string) => fileURLToPath(new URL(`../../${path}`, import.meta.url));
/** With `UPDATE=1` the picture of the README is made anew. */
const PICTURE = inWorkspace(process.env["UPDATE"] ? "docs/pulse.png" : "target/xtask/pulse.png");
const BOUND = { timeout: 40_000, polling: 50 };
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

let browser: Browser;
let server: Server;
before(async () => {
  browser = await launch(CHROMIUM);
  server = await Server.start(MAINSTAY, ["serve", "--listen", "127.0.0.1:0", "--heartbeat", "1s"]);
});
after(async () => {
  await browser.close();
  await server.kill();
});

/** Opens the page and waits until both lanes have answers; collects its errors, and its requests to other servers. */
async function open({ width = 1040, height = 775, language = "", where = browser } = {}): Promise<{ page: Page; complaints: string[] }> {
  const page = await where.newPage();
  await page.setViewport({ width, height });
  const complaints: string[] = [];
  page.on("console", (message) => complaints.push(message.text()));
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("request", (request) => {
    const { protocol, hostname } = new URL(request.url());
    if (protocol !== "data:" && hostname !== "127.0.0.1") complaints.push(`asks ${request.url()}`);
  });
  if (language) await page.setExtraHTTPHeaders({ "accept-language": language });
  await page.goto(`http://127.0.0.1:${server.port}/`);
  await beats(page, 2);
  await beats(page, 2, "#plain-beats");
  return { page, complaints };
}

const text = (page: Page, selector: string) => page.$eval(selector, (element) => element.textContent ?? "");
const count = async (page: Page, selector: string) => Number(await text(page, selector));

async function atLeast(page: Page, selector: string, least: number): Promise<void> {
  await page.waitForFunction((at: string, from: number) => Number(document.querySelector(at)!.textContent) >= from, BOUND, selector, least);
}

/** Waits until the server has answered so many pulses more. */
async function beats(page: Page, more: number, selector = "#beats"): Promise<void> {
  await atLeast(page, selector, (await count(page, selector)) + more);
}

/** Waits until Mainstay's lane is on this connection or a later one. */
async function connection(page: Page, least: number): Promise<void> {
  await atLeast(page, "#epoch", least);
  await page.waitForFunction(() => document.querySelector("#state")!.textContent === "connected", BOUND);
}

/** Waits until all messages of Mainstay's lane have come back, and returns the verdict. */
async function verdict(page: Page): Promise<string> {
  await page.waitForFunction(() => /^(\d+) sent, \1 answered;/.test(document.querySelector("#verdict")!.textContent!), BOUND);
  return text(page, "#verdict");
}

const log = (page: Page) => page.$$eval("#log li", (lines) => lines.map((line) => line.textContent).join("\n"));

test("page.html is up to date with its sources", async () => {
  for (const [language, path] of Object.entries(TARGETS)) {
    assert.equal(readFileSync(path, "utf8"), await built(language), "run `node page/build.mjs` in clients");
  }
});

test("every language has every word, with the same placeholders", () => {
  const { en, zh } = JSON.parse(readFileSync(inWorkspace("clients/page/words.json"), "utf8"));
  const shape = (words: object): unknown[] =>
    Object.entries(words).map(([name, word]) => [name, typeof word === "string" ? (word.match(/\{\w+\}/g) ?? []).sort() : shape(word)]);
  assert.deepEqual(shape(zh), shape(en));
});

test("at first no lane looks broken, and no message is lost", async () => {
  const page = await browser.newPage();
  // Without its script: the page as it is in the first moment.
  await page.setJavaScriptEnabled(false);
  await page.goto(`http://127.0.0.1:${server.port}/`);
  for (const lane of ["#plain", "#ours"]) assert.equal(await page.$eval(lane, (element) => element.getAttribute("data-health")), "none");
  assert.equal(await text(page, "#plain-lost"), "0");
  assert.match(await text(page, "h1"), /survives a cut/);
  await page.close();
});

test("the user drops the connection, moves, pauses the server and cuts the cable: by hand messages are lost, with Mainstay none", async () => {
  const { page, complaints } = await open();
  for (const [button, least] of [["#cut", 2], ["#restart", 3]] as const) {
    await page.click(button);
    await connection(page, least);
    await atLeast(page, "#plain-epoch", least);
    await beats(page, 2, "#plain-beats");
  }
  await page.select("#seconds", "2");
  await page.click("#freeze");
  await beats(page, 3);
  await page.click("#silent");
  await connection(page, 4);
  await beats(page, 2);
  assert.match(await verdict(page), /^\d+ sent, \d+ answered; in order, none twice$/);
  assert.equal(await text(page, "#lost"), "0");
  assert.equal(await text(page, "#gaps"), "0");
  const lost = await count(page, "#plain-lost");
  assert.ok(lost >= 6, `${lost} lost by hand`);
  assert.match(await text(page, "#plain-state"), /believes/, "a plain WebSocket does not notice a cut cable");
  assert.match(await text(page, "#last"), /nothing lost/);
  mkdirSync(inWorkspace("target/xtask"), { recursive: true });
  await page.screenshot({ path: PICTURE as `${string}.png` });
  assert.deepEqual(complaints, [], "no request to other servers, none that its policy forbids, no error");
  await page.close();
});

test("a session that the server forgets is reported as a gap, and the count shows the loss", async () => {
  const { page } = await open();
  await page.click("#forget");
  await atLeast(page, "#gaps", 1);
  await beats(page, 2);
  assert.match(await log(page), /Gap reported/);
  assert.match(await log(page), /A new session on connection no\. \d+: /);
  assert.equal(await text(page, "#gaps"), "1");
  if (await count(page, "#lost")) assert.equal(await text(page, "#lost-words"), "lost, and reported");
  await page.close();
});

test("keys work as the buttons do, and typed text is no key", async () => {
  const { page } = await open();
  await page.keyboard.press("d");
  await connection(page, 2);
  await page.type("#words", "dim fog");
  await page.keyboard.press("Enter");
  await beats(page, 2);
  assert.equal(await text(page, "#epoch"), "2");
  assert.match(await log(page), /“dim fog” came back after/);
  assert.match(await verdict(page), /in order, none twice$/);
  await page.close();
});

test("the page is in the language that the browser asks for", async () => {
  const { page, complaints } = await open({ language: "zh-CN,zh;q=0.9,en;q=0.8" });
  assert.equal(await page.$eval("html", (element) => element.lang), "zh-CN");
  assert.match(await text(page, "h1"), /断线不丢消息/);
  assert.equal(await text(page, "#state"), "已连接");
  assert.match(await text(page, "#verdict"), /^发送 \d+，应答 \d+/);
  assert.match(await log(page), /已连接，会话 \w{8}。/);
  await page.click('a[hreflang="en"]');
  await page.waitForFunction(() => document.documentElement.lang === "en", BOUND);
  assert.deepEqual(complaints, []);
  await page.close();
});

test("axe reports no violation, in the light and in the dark theme", async () => {
  const { page } = await open();
  await page.click("#cut");
  await connection(page, 2);
  for (const value of ["light", "dark"]) {
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value }]);
    await page.evaluate(AXE);
    const found = await page.evaluate("axe.run().then(({ violations }) => violations.map(({ id, nodes }) => [id, nodes.map(({ target }) => String(target))]))");
    assert.deepEqual(found, [], value);
  }
  await page.close();
});

test("the page fits a phone, with the last event in each card, has a dark theme, and stands still with reduced motion", async () => {
  const { page } = await open({ width: 320, height: 640 });
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(width <= 320, `${width} px wide`);
  await page.click("#cut");
  await page.waitForFunction(() => /nothing lost/.test(document.querySelector("#last")!.textContent!), BOUND);
  assert.match(await log(page), /nothing lost/);
  const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await background();
  await page.emulateMediaFeatures([
    { name: "prefers-color-scheme", value: "dark" },
    { name: "prefers-reduced-motion", value: "reduce" },
  ]);
  assert.notEqual(await background(), light);
  await beats(page, 1);
  // The page draws the trace once a second, not with every frame.
  const drawn = await page.evaluate(async () => {
    const canvas = document.querySelector("canvas")!;
    const pictures = new Set<string>();
    for (let frame = 0; frame < 30; frame++) {
      await new Promise(requestAnimationFrame);
      pictures.add(canvas.toDataURL());
    }
    return pictures.size;
  });
  assert.ok(drawn <= 3, `${drawn} pictures in 30 frames`);
  await page.close();
});

test("Firefox shows the same", { skip: !isThere(FIREFOX) && FIREFOX.install }, async () => {
  const firefox = await launch(FIREFOX);
  try {
    const { page, complaints } = await open({ where: firefox });
    await page.click("#cut");
    await connection(page, 2);
    await atLeast(page, "#plain-epoch", 2);
    await beats(page, 2, "#plain-beats");
    assert.match(await verdict(page), /in order, none twice$/);
    assert.equal(await text(page, "#lost"), "0");
    assert.ok((await count(page, "#plain-lost")) > 0);
    assert.deepEqual(complaints.filter((line) => !/interrupted|can.t establish/i.test(line)), []);
  } finally {
    await firefox.close();
  }
});
