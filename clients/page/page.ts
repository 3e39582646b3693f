/**
 * The live page: one real connection, what it is doing, and the means to break it.
 *
 * The page judges by numbers of its own (see `sequence.ts`); the library's counters stand beside them.
 */

import { MainstaySocket } from "../typescript/src/index.js";
import { Sequence } from "./sequence.js";
import { type Health, Trace } from "./trace.js";

const PULSE_EVERY = 1000;
/** So long without an answer is a reason to ask the library to look at the peer, and to ask again. */
const DOUBT_AFTER = 1500;
const DOUBT_AGAIN = 5000;
/** An answer that took longer says that the server was held. */
const LATE = 300;
const LOG_LINES = 200;

type Wish = "cut" | "freeze" | "restart" | "silent";

const element = <Kind extends HTMLElement = HTMLElement>(id: string) => document.getElementById(id) as Kind;
const show = (id: string, text: string | number) => {
  const { firstChild } = element(id);
  // Writing what is there already would make a screen reader say it again.
  if (firstChild?.nodeValue !== `${text}`) element(id).textContent = `${text}`;
};
const seconds = (milliseconds: number) => `${(milliseconds / 1000).toFixed(milliseconds < 9950 ? 2 : 1)} s`;
const many = (count: number, what: string) => `${count} ${what}${count === 1 ? "" : "s"}`;

// ---- what is known ----------------------------------------------------------------------------------

const url = new URL("pulse", location.href);
const socket = new MainstaySocket(url.href.replace(/^http/, "ws"));
const trace = new Trace(element<HTMLCanvasElement>("trace"));
const answers = new Sequence();
let ticks = new Sequence();
/** Ticks of sessions that are lost. */
let earlierTicks = 0;

/** Sent and not answered, oldest first. */
const open = new Map<number, { at: number; words?: string }>();
let pulses = 0;
let wishes = 0;
let wishesDelivered = 0;
let fates = 0;
let drops = 0;
let trip: number | undefined;

/** When the newest connection was attached or lost, or the visitor last did something to it. */
let attachedAt: number | undefined;
let lostAt: number | undefined;
let wish: { what: Wish; at: number } | undefined;
let doubtedAt: number | undefined;
let retryAt: number | undefined;
/** Attached anew, but not everything from before has been answered. */
let recovery: { at: number; upTo: number; resumed: boolean; told: string } | undefined;
let replayed = 0;

const counts = {
  get sent() {
    return pulses + wishes;
  },
  get delivered() {
    return answers.arrived + wishesDelivered;
  },
  get pulses() {
    return pulses;
  },
  get answered() {
    return answers.arrived;
  },
  get ticks() {
    return earlierTicks + ticks.arrived;
  },
  get missing() {
    return answers.missing + ticks.missing;
  },
  get twice() {
    return answers.twice + ticks.twice;
  },
  get outOfOrder() {
    return answers.late + ticks.late;
  },
  get gaps() {
    return fates + drops;
  },
};

declare global {
  interface Window {
    /** For tests, and for the curious at a console. */
    pulse: { socket: MainstaySocket; counts: typeof counts };
  }
}
window.pulse = { socket, counts };

// ---- what the page sends ----------------------------------------------------------------------------

function pulse(words?: string): void {
  const n = pulses + 1;
  try {
    socket.send(JSON.stringify({ type: "pulse", n, ...(words === undefined ? {} : { text: words }) }));
  } catch {
    // Away for so long that no more is kept. It was not accepted, so it is not counted.
    if (words !== undefined) tell("Not accepted: as many messages as are kept wait for the server.", "bad");
    return;
  }
  pulses = n;
  open.set(n, { at: performance.now(), ...(words === undefined ? {} : { words }) });
  refresh();
}

function make(what: Wish, message: object, told: string): void {
  wish = { what, at: performance.now() };
  tell(told);
  try {
    const { delivered } = socket.send(JSON.stringify({ type: what, ...message }));
    wishes++;
    void delivered.then((outcome) => {
      if (outcome === "delivered") wishesDelivered++;
    });
  } catch {
    tell("Not accepted: as many messages as are kept wait for the server.", "bad");
  }
}

const actions: Record<string, () => void> = {
  c: () => make("cut", {}, "You cut the cable."),
  f: () => {
    const length = Number(element<HTMLSelectElement>("seconds").value);
    make("freeze", { seconds: length }, `You froze the server for ${length} s.`);
  },
  r: () => make("restart", {}, "You had the server restart."),
  s: () => make("silent", {}, "You had the server go silent, for an hour."),
};

for (const id of ["cut", "freeze", "restart", "silent"]) element(id).onclick = actions[id[0]!]!;
addEventListener("keydown", (event) => {
  const inField = event.target instanceof Element && event.target.matches("input, select, textarea");
  if (inField || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  actions[event.key.toLowerCase()]?.();
});
element<HTMLFormElement>("say").onsubmit = (event) => {
  event.preventDefault();
  const field = element<HTMLInputElement>("words");
  const words = field.value.trim();
  if (!words) return;
  field.value = "";
  tell(`You said “${words}” (number ${pulses + 1}).`);
  pulse(words);
};

// ---- what comes -------------------------------------------------------------------------------------

socket.on("message", ({ data }) => {
  const message = JSON.parse(data as string) as { type: string; n: number; message: string };
  if (message.type === "tick") {
    ticks.take(message.n);
    trace.beat();
  } else if (message.type === "pulse") answered(message.n);
  else tell(`The server says: ${message.message}`, "bad");
});

function answered(n: number): void {
  const sent = open.get(n);
  const isNew = answers.take(n);
  // What is older was not answered, and is awaited no more: the verdict calls it missing.
  for (const older of open.keys()) if (older <= n) open.delete(older);
  if (!isNew || !sent) return;
  trip = performance.now() - sent.at;
  doubtedAt = undefined;
  trace.beat(trip);
  if (wish && trip > LATE && !recovery) {
    tell(`The server went on: an answer after ${seconds(trip)}, nothing lost.`, "good");
    wish = undefined;
  }
  if (sent.words !== undefined) tell(`“${sent.words}” came back after ${seconds(trip)}.`, "good");
  refresh();
}

socket.on("status", ({ status, code, reason, retryInMs }) => {
  retryAt = retryInMs === undefined ? undefined : performance.now() + retryInMs;
  if (status === "attached") return;
  if (status === "ended") tell(`The connection ended: ${reason || `code ${code}`}.`, "bad");
  else if (lostAt === undefined && attachedAt !== undefined) {
    lostAt = performance.now();
    tell(wish?.what === "cut" ? `The page noticed after ${seconds(lostAt - wish.at)}.` : "The connection was lost.", "bad");
  }
  refresh();
});

socket.on("session", ({ mode, resumed, id }) => {
  const now = performance.now();
  if (mode !== "session") tell("This server speaks plain WebSocket: nothing is kept over a loss.", "doubtful");
  else if (attachedAt === undefined) tell(`Attached. The session is ${name(id)}.`, "good");
  if (attachedAt !== undefined) {
    if (!resumed) newSession();
    recovery = { at: now, upTo: pulses, resumed, told: comeback(now, resumed) };
  }
  attachedAt = now;
  lostAt = retryAt = doubtedAt = wish = undefined;
  refresh();
});

const name = (id: string) => id.slice(0, 8);

/** The server's numbers begin anew; what it had said in the old session and did not arrive is in nobody's hands. */
function newSession(): void {
  earlierTicks += ticks.arrived;
  ticks = new Sequence();
  replayed = 0;
}

function comeback(now: number, resumed: boolean): string {
  const session = resumed ? "session resumed" : "the session is lost, this is a new one";
  if (lostAt !== undefined) return `Back after ${seconds(now - lostAt)}: ${session}`;
  const after = wish ? ` after ${seconds(now - wish.at)}` : "";
  const how = doubtedAt === undefined ? ", without an interruption" : wish ? " of silence" : "";
  return `Moved to connection ${socket.stats.connections}${after}${how}: ${session}`;
}

socket.on("gap", ({ fate, dropped }) => {
  if (dropped) drops++;
  else fates++;
  if (!fate) return tell(`Gap: ${dropped ? many(dropped.count, "message") : "something"} of the server’s was lost.`, "bad");
  const { delivered, unknown, last, resent } = fate;
  const rest = last - unknown ? `, ${last - unknown} not delivered${resent ? " and sent again" : ""}` : "";
  tell(`Gap: of yours ${delivered} delivered, ${unknown - delivered} unknown${rest}.`, "bad");
});

socket.on("error", ({ error }) => tell(`Error: ${error?.message ?? "unknown"}.`, "bad"));

// ---- what follows from time -------------------------------------------------------------------------

function look(): void {
  const now = performance.now();
  const waits = silence(now);
  if (waits > DOUBT_AFTER && socket.status === "attached") {
    if (doubtedAt === undefined) tell(`No answer for ${seconds(waits)}: the page asks for a look at the peer.`, "doubtful");
    if (doubtedAt === undefined || now - doubtedAt > DOUBT_AGAIN) {
      doubtedAt = now;
      socket.retryNow();
    }
  }
  if (recovery && now - recovery.at > 50 && answers.next > recovery.upTo) {
    const again = socket.stats.replayed - replayed;
    const well = recovery.resumed ? "nothing lost" : "none missing so far";
    tell(`${recovery.told}, ${many(again, "message")} replayed, ${isFaultless() ? well : faults()}.`, isFaultless() ? "good" : "bad");
    replayed += again;
    recovery = undefined;
  }
  refresh();
}

/** For how long the oldest pulse has been waiting for its answer, on this connection. */
function silence(now: number): number {
  const [oldest] = open.values();
  return oldest ? now - Math.max(oldest.at, attachedAt ?? 0) : 0;
}

// ---- what is shown ----------------------------------------------------------------------------------

const STATES: Record<string, string> = {
  attached: "attached",
  connecting: "looking for the server",
  waiting: "waiting",
  suspended: "suspended",
  closing: "closing",
  ended: "ended",
};

function refresh(): void {
  const now = performance.now();
  const { status, stats } = socket;
  const isSilent = status === "attached" && silence(now) > DOUBT_AFTER;
  const health: Health = status !== "attached" ? "lost" : isSilent ? "silent" : "well";
  element("monitor").dataset["health"] = trace.health = health;
  show("state", isSilent ? "attached, no answer" : STATES[status]!);
  show("detail", detail(now, isSilent));
  show("trip", trip === undefined ? "–" : trip < 10 ? trip.toFixed(1) : Math.round(trip));
  show("beats", answers.arrived);
  show("epoch", stats.epoch || "–");
  show("sent", counts.sent);
  show("delivered", counts.delivered);
  show("acknowledged", stats.acknowledged);
  show("replayed", stats.replayed);
  show("gaps", fates);
  show("their-sent", earlierTicks + ticks.next - 1 + answers.arrived);
  show("their-delivered", counts.ticks + answers.arrived);
  show("their-acknowledged", stats.acknowledgedToPeer);
  show("repeated", stats.repeatedAndDropped);
  show("their-gaps", drops);
  show("verdict", verdict());
  element("verdict").classList.toggle("faulty", !isFaultless());
}

function detail(now: number, isSilent: boolean): string {
  if (isSilent) return `for ${(silence(now) / 1000).toFixed(1)} s; the library is looking`;
  const { connections } = socket.stats;
  if (socket.status === "attached") return `${socket.sessionId ? `session ${name(socket.sessionId)}` : "no session"}, connection ${connections}`;
  const wait = retryAt === undefined ? 0 : Math.ceil((retryAt - now) / 1000);
  const kept = open.size ? `${many(open.size, "message")} kept` : "";
  return [wait > 0 ? `retry in ${wait} s` : "", kept].filter(Boolean).join(", ");
}

const isFaultless = () => answers.isFaultless && ticks.isFaultless;
const faults = () => [answers.faults, ticks.faults && `of the server’s: ${ticks.faults}`].filter(Boolean).join("; ");

function verdict(): string {
  const under = pulses - answers.arrived - answers.missing;
  const numbers = `${pulses} sent, ${answers.arrived} delivered${under ? `, ${under} on the way` : ""}`;
  return isFaultless() ? `${numbers}; in order, none twice` : `${numbers}; ${faults()}`;
}

function tell(what: string, how = ""): void {
  const line = document.createElement("li");
  const time = document.createElement("time");
  const words = document.createElement("span");
  time.textContent = new Date().toLocaleTimeString([], { hourCycle: "h23" });
  words.textContent = what;
  words.className = how;
  line.append(time, words);
  const log = element("log");
  log.prepend(line);
  while (log.childElementCount > LOG_LINES) log.lastElementChild!.remove();
}

setInterval(() => pulse(), PULSE_EVERY);
setInterval(look, 100);
pulse();
