/**
 * The script of the page: a socket, numbered messages at a steady rate, and a log of the events.
 *
 * The page's query has the URL and the options, so that a reload starts again by itself. The log outlives a reload in
 * `sessionStorage`, where it is, like the socket's own state, only while the page is away.
 */

import { MainstaySocket, type Options, type Outcome, type SocketEvents } from "@mainstay/client";
import { sessionStorageStore } from "@mainstay/client/reload";

/** One event, in the order in which the application got them. */
export type Entry =
  | { is: "echo"; number: number }
  | { is: "session"; resumed: boolean; epoch: number; id: string }
  | { is: "gap"; fate: SocketEvents["gap"]["fate"]; accepted: number }
  | { is: "status"; status: string; code: number | undefined; reason: string | undefined }
  | { is: "close"; code: number; fate: SocketEvents["close"]["fate"] }
  | { is: "authenticated"; accepted: boolean }
  | { is: "page"; event: string; hidden: boolean; persisted: boolean | undefined }
  | { is: "trouble"; what: string };

export interface Record {
  /** The number of messages that were sent, and of those accepted: some wait, for example for the attach after a reload. */
  sent: number;
  accepted: number;
  log: Entry[];
  /** The outcome of each message, by number, as the socket reported it. */
  outcomes: { [number: number]: Outcome };
}

const KEY = "record";
const EVERY_MS = 20;
/** A message of so many bytes or more is a filler that the page compares, byte by byte, when it comes back. */
const BIG = 1000;

export class Run {
  record: Record = { sent: 0, accepted: 0, log: [], outcomes: {} };
  socket: MainstaySocket;
  private timer: ReturnType<typeof setInterval>;
  private bearer: string;
  private tickets = 0;

  constructor(query: URLSearchParams) {
    const found = sessionStorage.getItem(KEY);
    if (found) this.record = JSON.parse(found);
    sessionStorage.removeItem(KEY);
    const { overReload, ...asked } = JSON.parse(query.get("options") ?? "{}");
    const options: Options = { ...asked, persist: overReload && sessionStorageStore() };
    this.bearer = query.get("bearer") ?? "";
    if (this.bearer) options.credentials = () => this.ticket();
    this.watchPage();
    this.socket = new MainstaySocket(query.get("socket")!, [], options);
    this.socket.binaryType = "arraybuffer";
    this.watchSocket();
    this.timer = setInterval(() => this.send(), EVERY_MS);
  }

  /** Sends the next message: text if its number is odd, binary if it is even or big. */
  send(size = 0): void {
    const number = this.record.sent + 1;
    const { accepted, delivered } = this.socket.send(bodyOf(number, size));
    this.record.sent = number;
    accepted.then(() => this.record.accepted++);
    delivered.then((outcome) => (this.record.outcomes[number] = outcome));
  }

  stop(): void {
    clearInterval(this.timer);
  }

  /** Presents credentials for the live session. */
  present(credentials = this.ticket()): void {
    this.socket.authenticate(credentials);
  }

  /** Returns credentials that were never used. */
  private ticket(): string {
    return `${this.bearer}/${++this.tickets}`;
  }

  get last(): number {
    return this.record.log.findLast((entry) => entry.is === "echo")?.number ?? 0;
  }

  private note(entry: Entry): void {
    this.record.log.push(entry);
  }

  private watchSocket(): void {
    const { socket } = this;
    socket.on("message", ({ data }) => {
      const number = numberOf(data);
      if (number) this.note({ is: "echo", number });
      else this.note({ is: "trouble", what: "a message that was never sent" });
    });
    socket.on("session", ({ resumed, epoch, id }) => this.note({ is: "session", resumed, epoch, id }));
    socket.on("gap", ({ fate }) => this.note({ is: "gap", fate, accepted: this.record.accepted }));
    socket.on("status", ({ status, code, reason }) => this.note({ is: "status", status, code, reason }));
    socket.on("close", ({ code, fate }) => this.note({ is: "close", code, fate }));
    socket.on("authenticated", ({ accepted }) => this.note({ is: "authenticated", accepted }));
    socket.on("error", ({ error }) => this.note({ is: "trouble", what: `error event: ${error}` }));
  }

  private watchPage(): void {
    const note = (event: Event) => {
      const { persisted } = event as PageTransitionEvent;
      this.note({ is: "page", event: event.type, hidden: document.hidden, persisted });
    };
    for (const type of ["freeze", "resume", "visibilitychange"]) document.addEventListener(type, note);
    for (const type of ["online", "offline", "pagehide", "pageshow"]) addEventListener(type, note);
    const leave = () => sessionStorage.setItem(KEY, JSON.stringify(this.record));
    const enter = () => sessionStorage.removeItem(KEY);
    addEventListener("pagehide", leave);
    addEventListener("pageshow", enter);
    document.addEventListener("freeze", leave);
    document.addEventListener("resume", enter);
    addEventListener("error", ({ message }) => this.note({ is: "trouble", what: `uncaught: ${message}` }));
    addEventListener("unhandledrejection", ({ reason }) => this.note({ is: "trouble", what: `unhandled: ${reason}` }));
  }
}

function bodyOf(number: number, size: number): string | Uint8Array {
  if (size < BIG) return number % 2 ? `${number}` : new TextEncoder().encode(`${number}`);
  const body = new Uint8Array(size);
  for (let i = 0; i < size; i++) body[i] = (i * 31 + (i >> 8)) & 255;
  new DataView(body.buffer).setUint32(0, number);
  return body;
}

/** Returns the number of a message; 0 if it is not one that was sent. */
function numberOf(data: string | ArrayBuffer): number {
  if (typeof data === "string") return Number(data) % 2 ? Number(data) : 0;
  if (data.byteLength < BIG) return Number(new TextDecoder().decode(data)) || 0;
  const number = new DataView(data).getUint32(0);
  const came = new Uint8Array(data);
  return (bodyOf(number, came.length) as Uint8Array).every((byte, i) => byte === came[i]) ? number : 0;
}

const query = new URLSearchParams(location.search);
if (query.has("socket")) Object.assign(window, { run: new Run(query) });
