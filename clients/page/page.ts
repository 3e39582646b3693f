/**
 * The live page: two real connections to the server that it came from, one by the usual recipe and one of Mainstay's, and
 * the means to break both.
 *
 * The page judges by numbers of its own (see `judge.ts`); the library's counters stand beside them.
 */

import { MainstaySocket } from "../typescript/src/index.js";
import type { Judge } from "./judge.js";
import { element, Lane, log, show, type Wish } from "./lane.js";
import { Plain } from "./plain.js";
import { fill, inSeconds, seconds, tenths } from "./words.js";

const PULSE_EVERY = 1000;
/** After so long without an answer the page shows it. */
const DOUBT_AFTER = 1500;
/** After so long the messages of a plain WebSocket count as lost, until an answer comes all the same. */
const LOST_AFTER = 12_000;
/** An answer that took longer shows that the server was paused. */
const LATE = 300;

const url = new URL("pulse", location.href).href.replace(/^http/, "ws").replace(/[?#].*$/, "");
const byHand = new Lane("plain-", WORDS.byHand);
const ours = new Lane("", WORDS.ours);
/** The typed texts, by the number of their message. */
const typed = new Map<number, string>();
let pulses = 0;

// ---- by hand ----------------------------------------------------------------------------------------

/** No byte passes on the newest connection any more: the user cut the cable. */
let isCableCut = false;
/** How long the reconnection took, until the first message of the server shows how many are missing. */
let backAfter: number | undefined;

const plain = new Plain(url, {
  open() {
    const now = performance.now();
    isCableCut = false;
    if (byHand.lostAt === undefined) byHand.report(WORDS.connected, "good");
    else backAfter = now - byHand.lostAt;
    byHand.attachedAt = now;
    byHand.lostAt = byHand.wish = undefined;
    if (!pulses) pulse();
  },
  message(data) {
    const answered = byHand.receive(data);
    if (backAfter !== undefined) byHand.report(fill(WORDS.backPlain, { time: seconds(backAfter), n: byHand.judge.lost }), "bad");
    backAfter = undefined;
    if (answered) wentOn(byHand, answered.trip);
    refresh();
  },
  close() {
    const now = performance.now();
    byHand.lostAt = now;
    byHand.judge.abandon();
    const { wish } = byHand;
    byHand.report(wish ? fill(WORDS.closedNoticed, { time: seconds(now - wish.at) }) : WORDS.closed, "bad");
    refresh();
  },
});

/** The messages that are lost, and those under way. On a connection that answers nothing, those under way are lost too: no end sends them again. */
function lostByHand(now: number): { lost: number; under: number } {
  const { lost, open, ticks } = byHand.judge;
  const isHopeless = isCableCut || !plain.isOpen || byHand.silence(now) > LOST_AFTER;
  if (!isHopeless || byHand.attachedAt === undefined) return { lost, under: open.size };
  // The other lane received what the server sent meanwhile.
  const meanwhile = ticks.newest && Math.max(0, ours.judge.ticks.newest - ticks.newest);
  return { lost: lost + open.size + meanwhile, under: 0 };
}

function refreshByHand(now: number): void {
  const isSilent = plain.isOpen && byHand.silence(now) > DOUBT_AFTER;
  const { lost, under } = lostByHand(now);
  const wait = plain.reconnectsAt === undefined ? 0 : Math.ceil((plain.reconnectsAt - now) / 1000);
  byHand.refresh({
    health: byHand.attachedAt === undefined ? "none" : !plain.isOpen ? "lost" : isSilent ? "silent" : "well",
    state: isSilent ? WORDS.stateBelieves : plain.isOpen ? WORDS.stateConnected : wait > 0 ? WORDS.stateWaiting : WORDS.stateConnecting,
    detail: isSilent ? fill(WORDS.unaware, { time: tenths(byHand.silence(now)) }) : wait > 0 ? fill(WORDS.reconnectsIn, { time: inSeconds(wait * 1000, 0) }) : "",
    lost,
    lostWords: lost ? WORDS.lostSilently : WORDS.lost,
    under,
  });
  show("plain-epoch", plain.connections || "–");
}

// ---- Mainstay ---------------------------------------------------------------------------------------

const socket = new MainstaySocket(url);
let gaps = 0;
let nextAttemptAt: number | undefined;
/** Set from a new attach until all earlier messages are answered. */
let recovery: { at: number; upTo: number; words: string; values: { [name: string]: string | number } } | undefined;
let replayed = 0;
let doubtedAt: number | undefined;

socket.on("message", ({ data }) => {
  const answered = ours.receive(data as string);
  if (!answered) return;
  const { n, trip } = answered;
  doubtedAt = undefined;
  if (!recovery) wentOn(ours, trip);
  const words = typed.get(n);
  if (words !== undefined) ours.report(fill(WORDS.cameBack, { words, time: seconds(trip) }), "good");
  typed.delete(n);
  refresh();
});

socket.on("status", ({ status, code, reason, nextAttemptInMs }) => {
  nextAttemptAt = nextAttemptInMs === undefined ? undefined : performance.now() + nextAttemptInMs;
  if (status === "attached") return;
  if (status === "ended") ours.report(fill(WORDS.ended, { why: reason || `${code}` }), "bad");
  else if (ours.lostAt === undefined && ours.attachedAt !== undefined) {
    ours.lostAt = performance.now();
    ours.report(ours.wish ? fill(WORDS.noticed, { time: seconds(ours.lostAt - ours.wish.at) }) : WORDS.wasLost, "bad");
  }
  refresh();
});

socket.on("session", ({ mode, resumed, id }) => {
  const now = performance.now();
  if (mode !== "session") ours.report(WORDS.noSession, "doubtful");
  else if (ours.attachedAt === undefined) ours.report(fill(WORDS.connectedAs, { id: name(id) }), "good");
  if (ours.attachedAt !== undefined) recovery = { at: now, upTo: pulses, ...comeback(now, resumed) };
  if (!resumed) replayed = 0;
  ours.attachedAt = now;
  ours.lostAt = nextAttemptAt = doubtedAt = ours.wish = undefined;
  if (!pulses) pulse();
  refresh();
});

const name = (id: string) => id.slice(0, 8);

/** The words of the report for when all open messages have been answered. */
function comeback(now: number, resumed: boolean) {
  const n = socket.stats.connections;
  if (!resumed) return { words: WORDS.newSession, values: { n } };
  if (ours.lostAt !== undefined) return { words: WORDS.back, values: { n, time: seconds(now - ours.lostAt) } };
  if (doubtedAt === undefined) return { words: WORDS.moved, values: { n } };
  return { words: WORDS.movedAfter, values: { n, time: seconds(now - (ours.wish?.at ?? doubtedAt)) } };
}

socket.on("gap", ({ fate, dropped }) => {
  gaps++;
  if (dropped) ours.report(fill(WORDS.gapDropped, { n: dropped.count }), "bad");
  else if (!fate) ours.report(WORDS.gapOpen, "bad");
  else {
    const { delivered, unknown, last } = fate;
    ours.report(fill(WORDS.gap, { delivered, unknown: unknown - delivered, rest: last - unknown }), "bad");
  }
});

socket.on("error", ({ error }) => ours.report(fill(WORDS.error, { why: error?.message ?? "?" }), "bad"));

function sendOurs(text: string): boolean {
  try {
    socket.send(text);
    return true;
  } catch {
    ours.report(WORDS.notAccepted, "bad");
    return false;
  }
}

const STATES: { [status: string]: string } = {
  attached: WORDS.stateConnected,
  connecting: WORDS.stateConnecting,
  waiting: WORDS.stateWaiting,
  suspended: WORDS.stateSuspended,
  closing: WORDS.stateClosing,
  ended: WORDS.stateEnded,
};

function refreshOurs(now: number): void {
  const { status, stats } = socket;
  const isSilent = status === "attached" && ours.silence(now) > DOUBT_AFTER;
  if (isSilent) doubtedAt ??= now;
  const { lost, open } = ours.judge;
  ours.refresh({
    health: ours.attachedAt === undefined ? "none" : status !== "attached" ? "lost" : isSilent ? "silent" : "well",
    state: isSilent ? WORDS.stateSilent : (STATES[status] ?? status),
    detail: detail(now, isSilent),
    lost,
    lostWords: lost && gaps ? WORDS.lostReported : WORDS.lost,
    under: open.size,
  });
  show("epoch", stats.connections || "–");
  show("replayed", stats.replayed);
  show("repeated", stats.repeatedAndDropped);
  show("gaps", gaps);
  reportRecovery(now);
}

/** Reports a recovery once all messages that were open before it have been answered. */
function reportRecovery(now: number): void {
  if (!recovery || now - recovery.at < 50) return;
  const { upTo, words, values } = recovery;
  const none = words === WORDS.newSession ? WORDS.noneSoFar : WORDS.nothingLost;
  if ([...ours.judge.open.keys()].some((n) => n <= upTo)) return;
  recovery = undefined;
  const again = socket.stats.replayed - replayed;
  replayed += again;
  ours.report(fill(words, { ...values, again, judgement: ours.judgement() || none }), ours.judge.lost ? "doubtful" : "good");
}

function detail(now: number, isSilent: boolean): string {
  if (isSilent) return fill(WORDS.checking, { time: tenths(ours.silence(now)) });
  if (socket.status === "attached") return socket.sessionId ? fill(WORDS.session, { id: name(socket.sessionId) }) : WORDS.noSession;
  const wait = nextAttemptAt === undefined ? 0 : Math.ceil((nextAttemptAt - now) / 1000);
  const { size } = ours.judge.open;
  return [wait > 0 ? fill(WORDS.reconnectsIn, { time: inSeconds(wait * 1000, 0) }) : "", size ? fill(WORDS.kept, { n: size }) : ""].filter(Boolean).join(", ");
}

// ---- both -------------------------------------------------------------------------------------------

function wentOn(lane: Lane, trip: number): void {
  if (lane.wish?.what !== "freeze" || trip < LATE) return;
  lane.report(fill(WORDS.wentOn, { time: seconds(trip) }), "good");
  lane.wish = undefined;
}

function pulse(words?: string): void {
  // Both lanes begin together, as no message is lost before there is a connection.
  if (byHand.attachedAt === undefined || ours.attachedAt === undefined) return;
  const n = ++pulses;
  const text = JSON.stringify({ type: "pulse", n, ...(words === undefined ? {} : { text: words }) });
  if (words !== undefined) typed.set(n, words);
  byHand.judge.note(n, plain.send(text));
  ours.judge.note(n, sendOurs(text));
  refresh();
}

/** Breaks the live connections. */
function make(what: Wish, message: object = {}, time = ""): void {
  const text = JSON.stringify({ type: what, ...message });
  const wish = { what, at: performance.now() };
  const [isOpen, isAttached] = [plain.isOpen, socket.status === "attached"];
  if (!isOpen && !isAttached) return log(WORDS.you, WORDS.nothingToBreak);
  log(WORDS.you, fill(WORDS.did[what], { time }));
  if (isOpen) {
    plain.send(text);
    byHand.wish = wish;
    isCableCut ||= what === "silent";
  }
  if (isAttached && sendOurs(text)) ours.wish = wish;
}

function refresh(): void {
  const now = performance.now();
  refreshByHand(now);
  refreshOurs(now);
}

// ---- what the user does -------------------------------------------------------------------------------

const ACTIONS: { [key: string]: [id: string, act: () => void] } = {
  c: ["silent", () => make("silent")],
  d: ["cut", () => make("cut")],
  m: ["restart", () => make("restart")],
  p: [
    "freeze",
    () => {
      const length = Number(element<HTMLSelectElement>("seconds").value);
      make("freeze", { seconds: length }, inSeconds(length * 1000, 0));
    },
  ],
  f: ["forget", () => make("forget")],
  o: ["over", () => location.reload()],
};

for (const [id, act] of Object.values(ACTIONS)) element(id).onclick = act;
addEventListener("keydown", (event) => {
  const inField = event.target instanceof Element && event.target.matches("input, select, textarea");
  if (inField || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  ACTIONS[event.key.toLowerCase()]?.[1]();
});
element<HTMLFormElement>("say").onsubmit = (event) => {
  event.preventDefault();
  const field = element<HTMLInputElement>("words");
  const words = field.value.trim();
  if (!words || !pulses) return;
  field.value = "";
  log(WORDS.you, fill(WORDS.said, { words }));
  pulse(words);
};

const lines = [
  `import { MainstaySocket } from "@mainstay/client";`,
  `const socket = new MainstaySocket("${url.replace(/pulse$/, "echo")}"); // ${WORDS.was}`,
  `socket.onmessage = ({ data }) => console.log(data);`,
];
element("lines").textContent = lines.join("\n");
element("copy").onclick = async () => {
  await navigator.clipboard.writeText(lines.join("\n"));
  show("copy", WORDS.copied);
};
// A page may write to the clipboard only over HTTPS, or on this machine.
element("copy").hidden = !navigator.clipboard;

declare global {
  interface Window {
    /** For tests, and for users at the console. */
    pulse: { socket: MainstaySocket; judge: Judge; byHand: Judge };
  }
}
window.pulse = { socket, judge: ours.judge, byHand: byHand.judge };

setInterval(() => pulse(), PULSE_EVERY);
setInterval(refresh, 100);
