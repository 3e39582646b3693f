/** One of the two lanes: its numbers, its trace, its card; and the log that both write. */

import { Judge } from "./judge.js";
import { type Health, Trace } from "./trace.js";
import { fill, type Words } from "./words.js";

const LOG_LINES = 200;

/** What the user does to both lanes. */
export type Wish = keyof Words["did"];

export const element = <Kind extends HTMLElement = HTMLElement>(id: string) => document.getElementById(id) as Kind;

export function show(id: string, text: string | number): void {
  const { firstChild } = element(id);
  // Writing the same text again would make a screen reader repeat it.
  if (firstChild?.nodeValue !== `${text}`) element(id).textContent = `${text}`;
}

/** What a lane shows. */
export interface Seen {
  health: Health;
  state: string;
  detail: string;
  lost: number;
  lostWords: string;
  /** Sent, and neither answered nor lost. */
  under: number;
}

/** The state of a lane: numbers, a trace, and when they last changed. */
export class Lane {
  judge = new Judge();
  trace: Trace;
  trip: number | undefined;
  /** When the newest connection came, or the last one was lost. */
  attachedAt: number | undefined;
  lostAt: number | undefined;
  wish: { what: Wish; at: number } | undefined;

  /** `prefix` is that of the ids of its elements. */
  constructor(
    readonly prefix: "" | "plain-",
    readonly name: string,
  ) {
    this.trace = new Trace(element<HTMLCanvasElement>(`${prefix}trace`));
  }

  show(id: string, text: string | number): void {
    show(this.prefix + id, text);
  }

  report(what: string, how = ""): void {
    this.show("last", what);
    element(`${this.prefix}last`).className = `last ${how}`;
    log(this.name, what, how);
  }

  /** Reads a message of the server. Returns the number and the round trip if it is an answer. */
  receive(data: string): { n: number; trip: number } | undefined {
    const { type, n, message } = JSON.parse(data) as { type: string; n: number; message: string };
    if (type === "tick") {
      this.judge.ticks.receive(n);
      this.trace.beat();
    } else if (type !== "pulse") this.report(fill(WORDS.error, { why: message }), "bad");
    else {
      const trip = this.judge.answer(n);
      if (trip === undefined) return undefined;
      this.trace.beat((this.trip = trip));
      return { n, trip };
    }
    return undefined;
  }

  /** For how long the oldest pulse has been waiting for its answer, on this connection. */
  silence(now: number): number {
    const [oldest] = this.judge.open.values();
    return oldest ? now - Math.max(oldest, this.attachedAt ?? 0) : 0;
  }

  judgement(lost = this.judge.lost): string {
    const { twice, late } = this.judge;
    const faults = [
      lost && fill(WORDS.missing, { n: lost }),
      twice && fill(WORDS.twice, { n: twice }),
      late && fill(WORDS.late, { n: late }),
    ];
    return faults.filter(Boolean).join(", ");
  }

  refresh({ health, state, detail, lost, lostWords, under }: Seen): void {
    const { judge } = this;
    element(this.prefix ? "plain" : "ours").dataset["health"] = this.trace.health = health;
    this.show("state", state);
    this.show("detail", detail);
    this.show("lost", lost);
    this.show("lost-words", lostWords);
    element(`${this.prefix}lost`).classList.toggle("faulty", lost > 0);
    this.show("trip", this.trip === undefined ? "–" : this.trip < 10 ? this.trip.toFixed(1) : Math.round(this.trip));
    this.show("beats", judge.answered);
    this.show("sent", judge.sent);
    this.show("delivered", judge.answered);
    this.show("ticks", judge.ticks.arrived);
    this.show(
      "verdict",
      fill(WORDS.verdict, {
        sent: judge.sent,
        answered: judge.answered,
        under: under ? fill(WORDS.under, { n: under }) : "",
        judgement: this.judgement(lost) || WORDS.faultless,
      }),
    );
    element(`${this.prefix}verdict`).classList.toggle("faulty", this.judgement(lost) !== "");
  }
}

/** Adds a line to the log, the newest first. */
export function log(who: string, what: string, how = ""): void {
  const parts = [
    Object.assign(document.createElement("time"), { textContent: new Date().toLocaleTimeString([], { hourCycle: "h23" }) }),
    Object.assign(document.createElement("b"), { textContent: who }),
    Object.assign(document.createElement("span"), { textContent: what, className: how }),
  ];
  const line = document.createElement("li");
  line.append(...parts);
  const list = element("log");
  list.prepend(line);
  while (list.childElementCount > LOG_LINES) list.lastElementChild!.remove();
}
