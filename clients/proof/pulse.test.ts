/** The live page of `mainstay serve`, used as a visitor uses it. It makes the picture in the README. */

import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { after, before, test } from "node:test";
import type { Browser, Page } from "puppeteer-core";
import { page as built, TARGET } from "../page/build.mjs";
import { CHROMIUM, launch } from "./browsers.js";
import { MAINSTAY, Server } from "./gateway.js";

const inWorkspace = (path: string) => fileURLToPath(new URL(`../../${path}`, import.meta.url));
/** With `UPDATE=1` the picture of the README is made anew. */
const PICTURE = inWorkspace(process.env["UPDATE"] ? "docs/pulse.png" : "target/xtask/pulse.png");
const BOUND = { timeout: 30_000, polling: 50 };

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

async function open(width = 1040): Promise<{ page: Page; complaints: string[] }> {
  const page = await browser.newPage();
  await page.setViewport({ width, height: 546 });
  const complaints: string[] = [];
  page.on("console", (message) => complaints.push(message.text()));
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("request", (request) => {
    const { protocol, hostname } = new URL(request.url());
    if (protocol !== "data:" && hostname !== "127.0.0.1") complaints.push(`asks ${request.url()}`);
  });
  await page.goto(`http://127.0.0.1:${server.port}/`);
  await beats(page, 2);
  return { page, complaints };
}

const text = (page: Page, selector: string) => page.$eval(selector, (element) => element.textContent ?? "");

/** Waits until the server has answered so many pulses more. */
async function beats(page: Page, more: number): Promise<void> {
  const before = Number(await text(page, "#beats"));
  await page.waitForFunction((from: number) => Number(document.querySelector("#beats")!.textContent) >= from, BOUND, before + more);
}

async function epoch(page: Page, atLeast: number): Promise<void> {
  await page.waitForFunction((least: number) => Number(document.querySelector("#epoch")!.textContent) >= least, BOUND, atLeast);
  await page.waitForFunction(() => document.querySelector("#state")!.textContent === "attached", BOUND);
}

/** Waits until all that was sent has come back, and reads the verdict. */
async function verdict(page: Page): Promise<string> {
  await page.waitForFunction(() => /^(\d+) sent, \1 delivered/.test(document.querySelector("#verdict")!.textContent!), BOUND);
  return text(page, "#verdict");
}

test("page.html is what page/build.mjs makes of its sources", async () => {
  assert.equal(readFileSync(TARGET, "utf8"), await built(), "run `node page/build.mjs` in clients");
});

test("a visitor cuts the cable, freezes the server, sends itself away and silences the server, and loses nothing", async () => {
  const { page, complaints } = await open();
  for (const [button, least] of [["#cut", 2], ["#restart", 3], ["#freeze", 4], ["#silent", 5]] as const) {
    await page.click(button);
    await epoch(page, least);
    await beats(page, 2);
  }
  assert.match(await verdict(page), /^\d+ sent, \d+ delivered; in order, none twice$/);
  assert.equal(await text(page, "#gaps"), "0");
  mkdirSync(inWorkspace("target/xtask"), { recursive: true });
  await page.screenshot({ path: PICTURE as `${string}.png` });
  assert.deepEqual(complaints, [], "no request elsewhere, nothing that its policy forbids, no error");
  await page.close();
});

test("the keys do what the buttons do, and words that are typed are not keys", async () => {
  const { page } = await open();
  await page.keyboard.press("c");
  await epoch(page, 2);
  await page.type("#words", "crisp");
  await page.keyboard.press("Enter");
  await beats(page, 2);
  assert.equal(await text(page, "#epoch"), "2");
  assert.match(await verdict(page), /in order, none twice$/);
  await page.close();
});

test("it fits a phone, is read in the dark, and stands still for who asks for it", async () => {
  const { page } = await open(320);
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(width <= 320, `${width} px wide`);
  const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await background();
  await page.emulateMediaFeatures([
    { name: "prefers-color-scheme", value: "dark" },
    { name: "prefers-reduced-motion", value: "reduce" },
  ]);
  assert.notEqual(await background(), light);
  await beats(page, 1);
  // The trace is drawn once a second, not with every frame.
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
