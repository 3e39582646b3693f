/** The stage of every scenario: everything between a backend and a page, and waits for events of the page. */

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import type { ChaosProxy } from "@mainstay/chaos";
import type { Browser, Page } from "puppeteer-core";
import { Backend } from "./backend.js";
import { cableTo } from "./cable.js";
import { Server } from "./gateway.js";
import { type Chapter, judge } from "./judge.js";
import type { Entry, Record, Run } from "./page.js";
import type { Site } from "./site.js";

declare const run: Run;

/** The longest wait for a condition, however slow the machine. */
const BOUND_MS = 40_000;
/** The bound of kept messages: a page sends through its longest wait for an attempt, and ten megabytes at once. */
const KEEP = { messages: 10_000, bytes: 16_000_000 };

/** A gateway with its backend, a cable to it, and a page at the other end. */
export class Stage {
  backend!: Backend;
  gateway!: Server;
  cable!: ChaosProxy;
  page!: Page;

  constructor(
    private browser: Browser,
    private site: Site,
  ) {}

  async set(flags: string[] = [], options: object = {}): Promise<this> {
    this.backend = await Backend.open();
    await this.startGateway(flags);
    await this.connect(options);
    return this;
  }

  async startGateway(flags: string[] = []): Promise<void> {
    this.gateway = await Server.gateway(this.gateway?.port ?? 0, this.backend.url, flags);
  }

  async connect(options: object = {}, bearer = ""): Promise<void> {
    this.cable = await cableTo(this.gateway.port);
    this.page = await this.browser.newPage();
    await this.page.goto(this.site.page(this.cable.url(""), { keep: KEEP, ...options }, bearer));
    await advance(this.page);
  }

  async strike(): Promise<void> {
    await this.page?.close();
    await this.cable?.close();
    await this.gateway?.kill();
    this.backend?.close();
  }
}

/** Waits until a condition is true. */
export async function until(what: string, isSo: () => boolean | Promise<boolean>): Promise<void> {
  const end = performance.now() + BOUND_MS;
  while (!(await isSo())) {
    assert.ok(performance.now() < end, `not within ${BOUND_MS / 1000} s: ${what}`);
    await sleep(20);
  }
}

export const recordOf = (page: Page): Promise<Record> => page.evaluate(() => run.record);

/** Brings the page to the front, as a hidden page sends one message a second, and waits until twenty more came back. */
export async function advance(page: Page): Promise<void> {
  await until("a page that runs", () => page.evaluate(() => "run" in window));
  if (await page.evaluate(() => document.hidden)) await page.bringToFront();
  const from = await page.evaluate(() => run.last);
  await until(`echoes above ${from}`, async () => (await page.evaluate(() => run.last)) >= from + 20);
}

/** Waits until the log holds an entry. */
export async function logged<Is extends Entry["is"]>(page: Page, is: Is, fits: (entry: Extract<Entry, { is: Is }>) => boolean): Promise<void> {
  await until(`${is} in the log`, async () => (await recordOf(page)).log.some((entry) => entry.is === is && fits(entry as any)));
}

/** Stops sending, waits for the messages under way, and checks the record. */
export async function finish(page: Page, seen?: number[][]): Promise<{ chapters: Chapter[]; record: Record }> {
  await page.evaluate(() => run.stop());
  await until("the last message to come back", () => page.evaluate(() => run.last === run.record.sent && run.record.sent in run.record.outcomes));
  const record = await recordOf(page);
  return { chapters: judge(record, seen), record };
}
