/**
 * The operator's console: asks the admin listener that it came from, once a second, and shows what it answers.
 *
 * Everything that is shown may come from a hostile client, so it becomes text and never markup. A token that the reader enters
 * stays in this tab.
 */

interface Session {
  id: string;
  /** The node that has it; `null` without a cluster. */
  node: string | null;
  state: string;
  epoch: number;
  age_seconds: number;
  away_seconds: number | null;
  rtt_seconds: number | null;
  queue_bytes: { client: number; backend: number };
  address: string | null;
  route: string | null;
  path: string | null;
  subject: string | null;
}

interface Status {
  version: string;
  state: string;
  reasons: string[];
  sessions: { attached: number; parked: number; draining: number };
  backends: { route: string; address: string; up: boolean; error: string | null }[];
  last_minute: { resumes: number; gaps: number; complete: boolean };
  losses: { by: Record<string, number> };
  longest_parked: Session[];
}

interface Listing {
  sessions: Session[];
  next: number | string | null;
  /** In a cluster: the nodes whose sessions are not in the list. */
  unreachable?: { node: string; why: string }[];
  /** `false`: there may be further nodes. */
  table_complete?: boolean;
}

interface Detail {
  session: Session | null;
  reconnects: string[];
  timeline: { at: string; text: string }[];
}

const EVERY = 1000;
/** So many values are in a chart. */
const HISTORY = 120;
const TOKEN = "mainstay-admin-token";

const at = <E extends HTMLElement>(id: string) => document.getElementById(id) as E;
const show = (id: string, text: string | number) => {
  const element = at(id);
  if (element.textContent !== String(text)) element.textContent = String(text);
};

// ---- asking -----------------------------------------------------------------------------------------

/** The listener requires a token, or another one. */
class Unauthorized extends Error {}

async function ask(path: string, method = "GET"): Promise<Response> {
  const headers: Record<string, string> = { "x-mainstay-admin": "console" };
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers["authorization"] = `Bearer ${token}`;
  const response = await fetch(path, { method, headers, cache: "no-store", redirect: "error", signal: AbortSignal.timeout(10_000) });
  if (response.status === 401) throw new Unauthorized();
  if (!response.ok) throw new Error((await response.text()).trim() || `status ${response.status}`);
  return response;
}

async function read<T>(path: string): Promise<T> {
  return (await ask(path)).json() as Promise<T>;
}

// ---- showing ----------------------------------------------------------------------------------------

/** Creates an element with these children. */
function make<K extends keyof HTMLElementTagNameMap>(name: K, ...children: (Node | string)[]): HTMLElementTagNameMap[K] {
  const element = document.createElement(name);
  element.append(...children);
  return element;
}

function seconds(time: number): string {
  if (time < 10) return `${time.toFixed(1)} s`;
  if (time < 120) return `${Math.floor(time)} s`;
  if (time < 7200) return `${Math.floor(time / 60)} min`;
  if (time < 172_800) return `${Math.floor(time / 3600)} h`;
  return `${Math.floor(time / 86_400)} d`;
}

function bytes(count: number): string {
  if (count < 1024) return `${count} B`;
  return count < 1 << 20 ? `${(count / 1024).toFixed(1)} KiB` : `${(count / (1 << 20)).toFixed(1)} MiB`;
}

/** The path of a session, with its route where a configuration names routes. */
function place({ route, path }: Session): string {
  return route && route !== "default" ? `${route} ${path}` : (path ?? "–");
}

/** A button that opens a session. It stays the same element while it is shown, so that it keeps the focus. */
function link(session: Session): HTMLButtonElement {
  const button = make("button", session.id);
  button.type = "button";
  button.className = "link";
  button.addEventListener("click", () => void open(session));
  return button;
}

const charts: Record<string, number[]> = { resumes: [], gaps: [] };

function chart(name: string, value: number): void {
  const values = charts[name]!;
  values.push(value);
  values.splice(0, values.length - HISTORY);
  const most = Math.max(1, ...values);
  const points = values.map((value, index) => `${((index + HISTORY - values.length) / (HISTORY - 1)) * 100},${22 - (value / most) * 20}`);
  draw(at(`${name}-chart`) as unknown as SVGElement, "polyline", { points: points.join(" ") }, "0 0 100 24");
}

function draw(svg: SVGElement, name: string, attributes: Record<string, string>, box: string): void {
  const shape = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) shape.setAttribute(key, value);
  svg.setAttribute("viewBox", box);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.replaceChildren(shape);
}

const WORDS: Record<string, string> = {
  closed: "closed by the client",
  reset: "reset",
  ended: "ended without a Close",
  silent: "silent: no byte after a probe",
  frozen: "frozen: accepts bytes, sends none",
  stalled: "stalled: accepts no bytes",
  not_listening: "answers no probe",
  violation: "violated the protocol",
  server: "closed by the server",
  injected: "injected fault",
};

function losses(by: Record<string, number>): void {
  const rows = Object.entries(by).sort(([, a], [, b]) => b - a);
  const most = Math.max(1, ...rows.map(([, count]) => count));
  const made = rows.map(([why, count]) => {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    draw(svg, "rect", { width: String((count / most) * 100), height: "10" }, "0 0 100 10");
    svg.setAttribute("aria-hidden", "true");
    const head = make("th", WORDS[why] ?? why);
    head.scope = "row";
    return make("tr", head, make("td", String(count)), make("td", svg));
  });
  const none = make("tr", make("td", "none"));
  at("losses").querySelector("tbody")!.replaceChildren(...(made.length ? made : [none]));
}

function backends(list: Status["backends"]): void {
  const made = list.map(({ route, address, up, error }) => {
    const state = make("strong", up ? "up" : "down");
    state.className = up ? "well" : "bad";
    return make("li", state, route === "default" ? ` ${address}` : ` ${route}: ${address}`, ...(error ? [make("div", error)] : []));
  });
  at("backends").replaceChildren(...(made.length ? made : [make("li", "the built-in backend")]));
}

/** The sessions that the list of the longest shows, so that it is made anew only if they change. */
let listed = "";

function longest(sessions: Session[]): void {
  const ids = sessions.map(({ id }) => id).join();
  if (ids !== listed) at("longest").replaceChildren(...(sessions.length ? sessions.map((session) => make("li", link(session), make("span"))) : [make("li", "none")]));
  listed = ids;
  at("longest").querySelectorAll("span").forEach((span, index) => {
    const session = sessions[index]!;
    span.textContent = ` ${seconds(session.away_seconds ?? 0)} ${session.subject ?? place(session)}`;
  });
}

function refresh(status: Status): void {
  show("version", status.version);
  show("state", status.state);
  at("state").className = status.state === "ready" ? "well" : "bad";
  show("reasons", status.reasons.join("; "));
  show("attached", status.sessions.attached.toLocaleString("en"));
  show("parked", status.sessions.parked.toLocaleString("en"));
  show("draining", status.sessions.draining.toLocaleString("en"));
  const { resumes, gaps, complete } = status.last_minute;
  const more = complete ? "" : "+";
  show("resumes", resumes.toLocaleString("en") + more);
  show("gaps", gaps.toLocaleString("en") + more);
  chart("resumes", resumes);
  chart("gaps", gaps);
  backends(status.backends);
  losses(status.losses.by);
  longest(status.longest_parked);
  at("drain").hidden = status.state === "draining";
  at("login").hidden = true;
  at("console").hidden = false;
}

// ---- once a second ----------------------------------------------------------------------------------

async function tick(): Promise<void> {
  try {
    refresh(await read<Status>("status"));
    if (opened) await detail(opened);
  } catch (error) {
    fail(error);
  }
}

function fail(error: unknown): void {
  if (error instanceof Unauthorized) {
    const had = sessionStorage.getItem(TOKEN) !== null;
    sessionStorage.removeItem(TOKEN);
    if (at("login").hidden) {
      at("console").hidden = at("drain").hidden = true;
      at("login").hidden = false;
      at("token").focus();
    }
    if (had) show("refused", "The listener refused this token.");
    show("state", "locked");
    return;
  }
  at("state").className = "bad";
  show("state", "not reachable");
  show("reasons", error instanceof Error ? error.message : String(error));
}

async function watch(): Promise<void> {
  for (;;) {
    // Without a token there is nothing to ask, and a hidden page asks nothing.
    const waits = document.hidden || (!at("login").hidden && !sessionStorage.getItem(TOKEN));
    if (!waits) await tick();
    await new Promise((resolve) => setTimeout(resolve, EVERY));
  }
}

at("login").addEventListener("submit", (event) => {
  event.preventDefault();
  const input = at<HTMLInputElement>("token");
  sessionStorage.setItem(TOKEN, input.value.trim());
  input.value = "";
  show("refused", "");
  void tick();
});

// ---- sessions ---------------------------------------------------------------------------------------

/** Where the next page of the search begins. */
let next: Listing["next"] = null;
let found = 0;

async function search(after: Listing["next"]): Promise<void> {
  const wanted = new URLSearchParams({ limit: "50" });
  const text = at<HTMLInputElement>("text").value.trim();
  const state = at<HTMLSelectElement>("only").value;
  if (text) wanted.set("search", text);
  if (state) wanted.set("state", state);
  if (after !== null) wanted.set("after", String(after));
  try {
    const page = await read<Listing>(`sessions?${wanted}`);
    const rows = page.sessions.map(row);
    const body = at("sessions").querySelector("tbody")!;
    if (after === null) {
      body.replaceChildren(...rows);
      found = 0;
    } else body.append(...rows);
    found += rows.length;
    next = page.next;
    at("sessions").hidden = !found;
    at("more").hidden = next === null;
    at("node").hidden = !at("sessions").querySelector("td.node");
    show("found", `${found} found${next === null ? "" : ", and there may be more"}${missing(page)}`);
  } catch (error) {
    if (error instanceof Unauthorized) fail(error);
    else show("found", String((error as Error).message));
  }
}

/** What the list lacks, in words. */
function missing({ unreachable = [], table_complete = true }: Listing): string {
  if (unreachable.length) return `; without ${unreachable.map(({ node, why }) => `node ${node} (${why})`).join(", ")}`;
  return table_complete ? "" : "; some nodes may not be known yet";
}

function row(session: Session): HTMLTableRowElement {
  const { state, away_seconds, age_seconds, rtt_seconds, queue_bytes, epoch, address, subject } = session;
  const cells = [
    link(session),
    away_seconds === null ? state : `${state} ${seconds(away_seconds)}`,
    seconds(age_seconds),
    rtt_seconds === null ? "–" : `${(rtt_seconds * 1000).toFixed(1)} ms`,
    `${bytes(queue_bytes.client)} / ${bytes(queue_bytes.backend)}`,
    String(epoch),
    address ?? "–",
    place(session),
    subject ?? "–",
  ].map((cell) => make("td", cell));
  if (session.node) {
    const node = make("td", session.node);
    node.className = "node";
    cells.push(node);
  }
  return make("tr", ...cells);
}

at("search").addEventListener("submit", (event) => {
  event.preventDefault();
  void search(null);
});
at("more").addEventListener("click", () => void search(next));
document.addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
  if (event.key === "/" && !typing && !at("console").hidden) {
    event.preventDefault();
    at("text").focus();
  }
});

/** The session that is shown. */
let opened: Pick<Session, "id" | "node"> | undefined;

/** Where a session is asked for: at its node, as a list of all nodes would be walked once a second. */
const target = ({ id, node }: Pick<Session, "id" | "node">) => `sessions/${encodeURIComponent(id)}${node ? `?node=${node}` : ""}`;

async function open({ id, node }: Session): Promise<void> {
  const session = (opened = { id, node });
  at("one").hidden = false;
  show("one-title", `Session ${id}`);
  await detail(session).catch(fail);
  at("one").focus();
}

async function detail(of: Pick<Session, "id" | "node">): Promise<void> {
  const nothing = (error: unknown): Detail => {
    if (error instanceof Unauthorized) throw error;
    return { session: null, reconnects: [], timeline: [] };
  };
  let answer = await read<Detail>(target(of)).catch(nothing);
  // It may have moved.
  if (!answer.session && of.node && !of.id.startsWith("plain-")) {
    const elsewhere = await read<Detail>(target({ ...of, node: null })).catch(nothing);
    if (elsewhere.timeline.length) answer = elsewhere;
  }
  if (opened !== of) return;
  const { session } = answer;
  at("end").hidden = !session;
  show("about", session ? about(session) : "It has ended, or a node that does not answer has it.");
  const why = answer.reconnects.map((sentence) => make("li", sentence));
  at("why").replaceChildren(...(why.length ? why : [make("li", "It did not, as far as the timeline goes back.")]));
  const entries = answer.timeline.map(({ at: when, text }) => {
    const time = make("time", when.slice(11, 23));
    time.dateTime = time.title = when;
    return make("li", time, text);
  });
  at("timeline").replaceChildren(...entries.reverse());
}

function about(session: Session): string {
  const { state, away_seconds, age_seconds, epoch, address, path, subject, queue_bytes, node } = session;
  const parts = [away_seconds === null ? state : `${state} for ${seconds(away_seconds)}`, `${seconds(age_seconds)} old`, `connection ${epoch}`];
  if (address) parts.push(`first from ${address}`);
  if (path) parts.push(place(session));
  if (subject) parts.push(subject);
  if (node) parts.push(`at node ${node}`);
  parts.push(`${bytes(queue_bytes.client)} queued for the client, ${bytes(queue_bytes.backend)} for the backend`);
  return parts.join(" · ");
}

at("back").addEventListener("click", () => {
  opened = undefined;
  at("one").hidden = true;
});

// ---- changes, each asked twice ----------------------------------------------------------------------

interface Question {
  title: string;
  text: string;
  first: string;
  second: string;
}

/** Asks twice; `true` if both answers are yes. */
function confirmed({ title, text, first, second }: Question): Promise<boolean> {
  const [dialog, yes, no] = [at<HTMLDialogElement>("ask"), at<HTMLButtonElement>("ask-yes"), at("ask-no")];
  show("ask-title", title);
  show("ask-text", text);
  yes.textContent = first;
  dialog.showModal();
  return new Promise((resolve) => {
    let asked = 0;
    let answer = false;
    const said = () => {
      asked += 1;
      yes.textContent = second;
      // Two clicks of one double click are one answer.
      yes.disabled = true;
      setTimeout(() => (yes.disabled = false), 500);
      if (asked < 2) return;
      answer = true;
      dialog.close();
    };
    const closed = () => {
      yes.removeEventListener("click", said);
      resolve(answer);
    };
    yes.disabled = false;
    yes.addEventListener("click", said);
    no.onclick = () => dialog.close();
    dialog.addEventListener("close", closed, { once: true });
  });
}

async function change(path: string, method: string): Promise<void> {
  try {
    await ask(path, method);
    await tick();
  } catch (error) {
    fail(error);
  }
}

at("drain").addEventListener("click", async () => {
  const count = `${at("attached").textContent} attached and ${at("parked").textContent} parked`;
  const yes = await confirmed({
    title: "Drain this process?",
    text: `It asks its clients to reconnect (${count}), refuses new ones, and ends. Nothing undoes this.`,
    first: "Drain",
    second: "Yes, drain and end",
  });
  if (yes) await change("drain?confirm=drain", "POST");
});

at("end").addEventListener("click", async () => {
  const session = opened;
  if (!session) return;
  const yes = await confirmed({
    title: "End this session?",
    text: `Session ${session.id} ends now, with code 4500. Messages that were not written are lost, and its client learns which.`,
    first: "End it",
    second: "Yes, end it",
  });
  if (yes) await change(target(session), "DELETE");
});

void watch();
