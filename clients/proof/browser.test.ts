/**
 * The client in a real browser, over the real gateway, under the faults that networks, people and operators cause.
 *
 * Every scenario sends numbered messages before, during and after its fault, and `judge.ts` checks it: each message came back once and
 * in order, or a gap states exactly which may not have. Scenarios wait for conditions; only those about time wait for a duration.
 */

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { Browser, Page } from "puppeteer-core";
import { CHROMIUM, crash, type Engine, FIREFOX, freeze, hidden, isThere, launch, ONE_TIMER_A_MINUTE, thaw } from "./browsers.js";
import { countOf, sever } from "./cable.js";
import { CREDENTIALS_SERVER, Server } from "./gateway.js";
import type { Chapter } from "./judge.js";
import type { Record, Run } from "./page.js";
import { Site } from "./site.js";
import { advance, finish, logged, recordOf, Stage, until } from "./stage.js";

declare const run: Run;

/** The client gives a connection up after two heartbeats, of a second here, and 5 s without a message. */
const VERDICT_MS = 7000;

let site: Site;
before(async () => void (site = await Site.open()));
after(() => site.close());

const codes = ({ log }: Record) => log.flatMap((entry) => (entry.is === "status" && entry.code ? [entry.code] : []));
const attaches = ({ log }: Record) => log.flatMap((entry) => (entry.is === "session" ? [entry.resumed] : []));
const events = ({ log }: Record) => log.flatMap((entry) => (entry.is === "page" ? [entry.event] : []));

type Scenario = (stage: Stage) => Promise<void>;

const EVERYWHERE: { [name: string]: Scenario } = {
  "a session resumes after its connections are reset, and loses nothing": async (stage) => {
    const { cable, page, backend } = await stage.set();
    for (let i = 0; i < 3; i++) {
      await cable.reset();
      await advance(page);
    }
    const { chapters, record } = await finish(page, backend.seen);
    assert.equal(chapters.length, 1);
    assert.deepEqual(attaches(record), [false, true, true, true]);
  },

  "the client notices a silent connection, once, and the session resumes": async (stage) => {
    const { cable, page, backend, gateway } = await stage.set();
    await cable.inject({ kind: "black-hole", target: "open" });
    await logged(page, "status", ({ code }) => code === 4408);
    await advance(page);
    const { chapters, record } = await finish(page, backend.seen);
    assert.equal(chapters.length, 1);
    assert.deepEqual(codes(record), [4408]);
    assert.deepEqual(attaches(record), [false, true]);
    assert.ok((await gateway.metric("dead_peers_total")) <= 1);
  },

  "a tab in the background for longer than the deadline keeps its connection": async (stage) => {
    const { cable, page, backend, gateway } = await stage.set();
    await hidden(page, () => sleep(VERDICT_MS + 3000));
    await advance(page);
    const { record } = await finish(page, backend.seen);
    assert.deepEqual(events(record).slice(-2), ["visibilitychange", "visibilitychange"]);
    assert.deepEqual(codes(record), [], "no verdict of the page");
    assert.equal(await gateway.metric("dead_peers_total"), 0, "no verdict of the gateway");
    assert.equal(await countOf(cable), 1);
  },

  "a page that the user leaves and comes back to goes on": async (stage) => {
    const { page, backend } = await stage.set([], { overReload: true });
    for (let i = 0; i < 2; i++) {
      await page.goto(site.elsewhere);
      await page.goBack();
      await advance(page);
    }
    const { chapters, record } = await finish(page, backend.seen);
    assert.equal(chapters.length, 1);
    assert.deepEqual(attaches(record), [false, true, true]);
  },

  "a page that is reloaded goes on with its session": async (stage) => {
    const { page, backend } = await stage.set([], { overReload: true });
    for (let i = 0; i < 3; i++) {
      await page.reload();
      await advance(page);
    }
    const { chapters, record } = await finish(page, backend.seen);
    assert.equal(chapters.length, 1);
    assert.deepEqual(attaches(record), [false, true, true, true]);
  },

  "a duplicate of a live tab, reloaded before, has a session of its own": async (stage) => {
    const { page, backend } = await stage.set([], { overReload: true });
    await page.reload();
    await advance(page);
    const duplicate = await duplicateOf(page, page.url());
    await advance(duplicate);
    await advance(page);
    const second = await finish(duplicate);
    const { record } = await finish(page);
    assert.deepEqual(attaches(record), [false, true]);
    assert.deepEqual(attaches(second.record), [false]);
    assert.deepEqual(backend.seen.map((numbers) => numbers.length), [record.sent, second.record.sent]);
    await duplicate.close();
  },

  "when two pages go on from one stored session, one resumes it and the other gets a gap": (stage) =>
    inherit(stage, (page, address) => page.goto(address)),

  "a gateway that is killed loses sessions, and every page gets the fate of each message": async (stage) => {
    const { page, backend, gateway } = await stage.set();
    await gateway.kill();
    const { sent } = await recordOf(page);
    await until("messages that were never written", async () => (await recordOf(page)).sent > sent + 20);
    await stage.startGateway();
    await advance(page);
    const { chapters } = await finish(page, backend.seen);
    assert.equal(chapters.length, 2);
    assert.equal(chapters[0]!.fate?.cause, "unknown");
    assert.ok(chapters[0]!.fate?.resent);
  },

  "a session that waits for longer than the resume window is lost, and its account is exact": async (stage) => {
    const { page, backend, cable, gateway } = await stage.set(["--resume-window", "1s"]);
    await sever(cable);
    await until("the end of the session", async () => (await gateway.metric("sessions_expired_total")) === 1);
    await cable.liftAll();
    await advance(page);
    const { chapters } = await finish(page, backend.seen);
    const [{ fate, echoed }] = chapters as [Chapter];
    const delivered = backend.seen[0]!.length;
    assert.equal(chapters.length, 2);
    assert.equal(fate?.cause, "expired");
    assert.deepEqual([fate.delivered, fate.unknown], [delivered, delivered]);
    assert.equal(echoed + (fate.lost?.count ?? 0), delivered, "each echo came or is counted as lost");
  },

  "a gateway that drains keeps a page without another server until the drain ends, and announces it": async (stage) => {
    const { page, backend, gateway } = await stage.set(["--drain", "3s"]);
    const drained = gateway.drain();
    await advance(page);
    await logged(page, "status", ({ code }) => code === 1012);
    await drained;
    await stage.startGateway();
    await advance(page);
    const { chapters, record } = await finish(page, backend.seen);
    assert.equal(chapters.length, 2);
    assert.deepEqual(attaches(record), [false, false]);
  },

  "a page moves without a pause to a successor that runs when the gateway drains": async (stage) => {
    // The longest time that a browser on a busy machine may need to move.
    const { page, backend, gateway } = await stage.set(["--drain", "10s"]);
    const drained = gateway.drain();
    await until("the drain to begin", async () => !(await gateway.isReady()));
    await stage.startGateway();
    await logged(page, "gap", () => true);
    await advance(page);
    await drained;
    const { chapters, record } = await finish(page, backend.seen);
    assert.equal(chapters.length, 2);
    assert.deepEqual(attaches(record), [false, false]);
    assert.ok(record.log.every((entry) => entry.is !== "status" || entry.status !== "waiting"), "it was attached throughout");
  },

  "ten megabytes in one message over a slow link do not end a connection": async (stage) => {
    const { page, backend, gateway, cable } = await stage.set(["--max-message", "16MiB"]);
    await cable.inject({ kind: "bandwidth", "bytes-per-second": 2_500_000 });
    await page.evaluate(() => run.send(10_000_000));
    const { record } = await finish(page, backend.seen);
    assert.deepEqual(codes(record), [], "no verdict of the page");
    assert.equal(await gateway.metric("dead_peers_total"), 0, "no verdict of the gateway");
    assert.equal(await countOf(cable), 1);
  },
};

const IN_CHROMIUM: { [name: string]: Scenario } = {
  "messages sent offline arrive once the network is back": async (stage) => {
    const { page, backend } = await stage.set();
    await page.setOfflineMode(true);
    await logged(page, "status", ({ code }) => code === 4408);
    const { sent } = await recordOf(page);
    await until("messages that were sent offline", async () => (await recordOf(page)).sent > sent + 20);
    await page.setOfflineMode(false);
    await advance(page);
    const { chapters, record } = await finish(page, backend.seen);
    assert.deepEqual(events(record).slice(-2), ["offline", "online"]);
    assert.equal(chapters.length, 1);
    assert.deepEqual(attaches(record), [false, true]);
  },

  "a page that was frozen goes on when it thaws": async (stage) => {
    const { page, backend } = await stage.set();
    await hidden(page, async () => {
      await freeze(page);
      await sleep(VERDICT_MS + 1000);
      await thaw(page);
    });
    await advance(page);
    const { chapters, record } = await finish(page, backend.seen);
    assert.ok(events(record).includes("freeze") && events(record).includes("resume"));
    assert.equal(chapters.length, 1);
  },

  "a page that was frozen and discarded goes on when it is loaded again": async (stage) => {
    const { page, backend } = await stage.set([], { overReload: true });
    await hidden(page, async () => {
      await freeze(page);
      await crash(page);
      await page.reload();
    });
    await advance(page);
    const { chapters, record } = await finish(page, backend.seen);
    assert.equal(chapters.length, 1);
    assert.deepEqual(attaches(record), [false, true]);
  },

  "a page that comes back after the resume window gets the fate of its predecessor's messages": async (stage) => {
    const { page, backend, gateway } = await stage.set(["--resume-window", "1s"], { overReload: true });
    const address = page.url();
    await page.goto(site.elsewhere);
    await until("the end of the session", async () => (await gateway.metric("sessions_expired_total")) === 1);
    await page.goto(address);
    await advance(page);
    const { chapters } = await finish(page, backend.seen);
    assert.equal(chapters.length, 2);
    assert.equal(chapters[0]!.fate?.cause, "expired");
  },

  "a page that was kept for back and forward goes on where it was": async (stage) => {
    const { page, backend } = await stage.set();
    for (let i = 0; i < 2; i++) {
      await page.goto(site.elsewhere);
      await page.goBack();
      await advance(page);
    }
    const { chapters, record } = await finish(page, backend.seen);
    const returns = record.log.filter((entry) => entry.is === "page" && entry.event === "pageshow" && entry.persisted);
    assert.equal(returns.length, 2, "the browser kept the page");
    assert.equal(chapters.length, 1);
    assert.deepEqual(attaches(record), [false, true, true]);
  },

  "a page that was kept while a copy of it went on gets a gap": async (stage) => {
    await inherit(stage, (page) => page.goBack());
    const { log } = await recordOf(stage.page);
    assert.ok(log.some((entry) => entry.is === "page" && entry.event === "pageshow" && entry.persisted), "the browser kept the page");
  },

  "ten megabytes in many messages may take longer than the deadline": async (stage) => {
    const { page, backend, gateway, cable } = await stage.set();
    await page.evaluate(() => run.stop());
    await cable.inject({ kind: "bandwidth", "bytes-per-second": 1_000_000 });
    await page.evaluate(() => {
      for (let i = 0; i < 160; i++) run.send(62_500);
    });
    const { record } = await finish(page, backend.seen);
    assert.deepEqual(codes(record), [], "no verdict of the page");
    assert.equal(await gateway.metric("dead_peers_total"), 0, "no verdict of the gateway");
    assert.equal(await countOf(cable), 1);
  },

  "credentials are renewed while the session goes on": async (stage) => {
    stage.gateway = await Server.start(CREDENTIALS_SERVER, ["--listen", "127.0.0.1:0"]);
    await stage.connect({}, "alice");
    const { page, cable } = stage;
    const present = async (credentials?: string) => {
      const judged = (record: Record) => record.log.flatMap((entry) => (entry.is === "authenticated" ? [entry.accepted] : []));
      const { length } = judged(await recordOf(page));
      await page.evaluate((text) => run.present(text), credentials);
      await until("a verdict", async () => judged(await recordOf(page)).length > length);
      return judged(await recordOf(page)).at(-1);
    };
    assert.equal(await present("alice/1"), false, "used before");
    assert.equal(await present(), true);
    assert.equal(await present("bob/9"), false, "the name of another client");
    await advance(page);
    await cable.reset();
    await advance(page);
    const { chapters, record } = await finish(page);
    assert.equal(chapters.length, 1);
    assert.deepEqual(attaches(record), [false, true]);
  },
};

const IN_FIREFOX: { [name: string]: Scenario } = {
  "an offline event without an outage costs no connection": async (stage) => {
    const { page, backend, cable } = await stage.set();
    await page.setOfflineMode(true);
    await logged(page, "page", ({ event }) => event === "offline");
    await advance(page);
    await page.setOfflineMode(false);
    await logged(page, "page", ({ event }) => event === "online");
    await advance(page);
    const { record } = await finish(page, backend.seen);
    assert.deepEqual(codes(record), []);
    assert.equal(await countOf(cable), 1);
  },
};

const WITH_ONE_TIMER_A_MINUTE: { [name: string]: Scenario } = {
  "a page with one timer a minute answers from where it receives, and keeps its connection": async (stage) => {
    const { cable, page, backend, gateway } = await stage.set();
    await hidden(page, async () => {
      await sleep(VERDICT_MS);
      const { sent } = await recordOf(page);
      await sleep(60_000);
      assert.ok((await recordOf(page)).sent - sent <= 2, "its timers are held back");
    });
    await advance(page);
    const { chapters, record } = await finish(page, backend.seen);
    assert.equal(chapters.length, 1);
    assert.deepEqual(codes(record), [], "no verdict of the page");
    assert.equal(await gateway.metric("dead_peers_total"), 0, "no verdict of the gateway");
    assert.equal(await countOf(cable), 1);
  },
};

/**
 * The user leaves a page with messages that were never written; a second page goes on from a copy of its store; then the first page
 * comes back. It cannot know what the second one wrote, and must report that.
 */
async function inherit(stage: Stage, comeBack: (page: Page, address: string) => Promise<unknown>): Promise<void> {
  const { page, cable } = await stage.set([], { overReload: true });
  const address = page.url();
  await sever(cable);
  const { sent } = await recordOf(page);
  await until("messages that were never written", async () => (await recordOf(page)).sent > sent + 5);
  await page.goto(site.elsewhere);
  await until("the page's state and ours", () => page.evaluate(() => sessionStorage.length === 2));
  const stored = await page.evaluate((): Record => JSON.parse(sessionStorage["record"]));
  await cable.liftAll();
  const heir = await duplicateOf(page, address);
  await advance(heir);
  await comeBack(page, address);
  await advance(page);
  const inherited = await finish(heir);
  const { chapters, record } = await finish(page);
  assert.deepEqual(attaches(inherited.record), [false, true]);
  assert.deepEqual(attaches(record), [false, false]);
  assert.equal(chapters[0]!.fate?.unknown, stored.accepted, "the other page may have written all stored messages");
  await heir.close();
}

/** Duplicates a tab as a browser does: opens a page with a copy of this one's `sessionStorage`. */
async function duplicateOf(page: Page, address: string): Promise<Page> {
  const opened = new Promise<Page | null>((resolve) => page.once("popup", resolve));
  await page.evaluate((url) => void window.open(url), address);
  return (await opened) ?? assert.fail("no second tab");
}

function perform(engine: Engine, scenarios: { [name: string]: Scenario }, flags: string[] = []): void {
  describe([engine.name, ...flags].join(" "), { concurrency: 1, skip: engine === FIREFOX && !isThere(engine) && engine.install }, () => {
    let browser: Browser;
    before(async () => void (browser = await launch(engine, flags)));
    after(() => browser?.close());
    for (const [name, scenario] of Object.entries(scenarios)) {
      test(name, async () => {
        const stage = new Stage(browser, site);
        try {
          await scenario(stage);
        } finally {
          await stage.strike();
        }
      });
    }
  });
}

describe("the client in", { concurrency: true }, () => {
  perform(CHROMIUM, { ...EVERYWHERE, ...IN_CHROMIUM });
  perform(CHROMIUM, WITH_ONE_TIMER_A_MINUTE, ONE_TIMER_A_MINUTE);
  perform(FIREFOX, { ...EVERYWHERE, ...IN_FIREFOX });
});
