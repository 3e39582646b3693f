/** The words of `mainstay chaos`: its faults, the fields of a rule, and the events of its timeline. */

/** A duration, such as `"250ms"`, `"8s"` or `"1m"`. */
export type Duration = string;

/** A number of bytes, such as `4096` or `"64KiB"`. */
export type Bytes = number | string;

/** `up`: from the client to the upstream; `down`: from the upstream to the client. Default: `both`. */
export type Direction = "up" | "down" | "both";

/** A way in which a connection breaks. The names and fields are those of scenario files. */
export type Fault =
  | { kind: "reset" | "fin" | "refuse" | "mute" | "ghost" }
  | { kind: "black-hole" | "stall" | "jam" | "corrupt" | "cut-in-frame" | "swallow-close" | "drop-pings" | "drop-pongs"; direction?: Direction }
  | { kind: "delay"; direction?: Direction; latency: Duration; jitter?: Duration }
  | { kind: "bandwidth"; direction?: Direction; "bytes-per-second": Bytes }
  | { kind: "trickle"; direction?: Direction; bytes?: Bytes }
  | { kind: "cut-after"; direction?: Direction; bytes: Bytes }
  | { kind: "idle-cut"; direction?: Direction; idle: Duration; silent?: boolean }
  | { kind: "lifetime-cut"; age: Duration }
  | { kind: "status"; code: number; "retry-after"?: number };

/** A fault, and when it strikes: of `at`, `after` and `every` at most one. Without them it strikes always. */
export type Rule = Fault & {
  /** Once, so long after the start. */
  at?: Duration;
  /** With `at`: and again each so often. */
  repeat?: Duration;
  /** So long after each connection opens. */
  after?: Duration;
  /** At random times, so far apart on average. */
  every?: Duration;
  /** How long it lasts. Default: until the connection ends. */
  for?: Duration;
  /** The share of connections that it strikes, from 0 to 1. Default: 1. */
  share?: number;
};

/** A fault that strikes now. */
export type Strike = Fault & {
  /** How long it lasts. Default: until it is lifted. */
  for?: Duration;
  /** Strikes this connection alone. */
  connection?: number;
  /** Strikes the connections that are open now, those that open later, or both. Default: `all`. */
  target?: "open" | "new" | "all";
};

/** What happened, as the timeline has it. Each kind of event has further fields. */
export interface Event {
  /** From 1, in the order of the timeline. */
  number: number;
  /** Seconds since the start. */
  at: number;
  /** Such as `opened`, `connected`, `handshake` (with its `status`), `fault`, `lifted` and `closed` (with a `reason`). */
  event: string;
  /** The number of the connection, from 1. */
  connection?: number;
  /** The name of the fault. */
  fault?: string;
  /** What caused it: a rule or a command. */
  by?: string;
  [field: string]: unknown;
}

/** A connection that is open now. */
export interface Connection {
  /** From 1, in the order of opening. */
  id: number;
  /** The client's address. */
  client: string;
  /** Seconds since the start. */
  opened: number;
  /** Bytes from the client that reached the upstream. */
  up: number;
  /** Bytes from the upstream that reached the client. */
  down: number;
  /** `connecting`, `open`, `websocket`, `unreadable`, `closing` or `dead`. */
  state: string;
  /** The names of the faults in force on it. */
  faults: string[];
}
