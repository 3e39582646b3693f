// One row on one leg: a server, what stands in front of it, the checks of the row, restarts of the server. Every result
// is one line of JSON on the standard output.

import { existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { front } from './fronts.mjs';
import { Program, freePort } from './processes.mjs';

/** A check that takes longer has failed. */
const LIMIT = 20;

/**
 * The server is started again this many milliseconds after its kill: between two attempts of most clients here, not
 * at the time of one.
 *
 * Clients wait steadily, a second at most: options see to that where a client would wait longer or ever longer. Otherwise
 * a server that is a little later on one leg of a busy machine comes after an attempt instead of before it, and makes a
 * difference of many seconds. `xtask/src/ecosystems/verdict.rs` allows for one wait.
 */
const AWAY = 1300;

/** How long a subscription may take until it flows again when the server is back: the slowest client here takes 10 s. */
const FLOW_LIMIT = 20;

export class Leg {
  static async start(row, name, folder) {
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(folder, { recursive: true });
    const leg = new Leg(row, name, folder);
    leg.backend = await freePort();
    leg.generation = 0;
    await leg.startServer();
    Object.assign(leg, await front(name, leg.backend, row, folder));
    leg.host = `127.0.0.1:${leg.port}`;
    leg.origin = `http://${leg.host}`;
    return leg;
  }

  constructor(row, name, folder) {
    Object.assign(this, { row, name, folder, record: join(folder, 'record.jsonl'), ordered: 0 });
  }

  url(path = '/') {
    return `ws://${this.host}${path}`;
  }

  async startServer() {
    this.generation += 1;
    const { env, ...server } = this.row.server({ port: this.backend, folder: this.folder });
    const own = { PORT: String(this.backend), RECORD: this.record, GENERATION: String(this.generation) };
    this.server = new Program({ ...server, env: { ...own, ...env }, log: join(this.folder, 'server.log') });
    await this.server.listens(this.backend, 60);
  }

  /** The objects that the server has written down so far. */
  seen() {
    if (!existsSync(this.record)) return [];
    return readFileSync(this.record, 'utf8').split('\n').filter(Boolean).map((line) => JSON.parse(line));
  }

  /** Runs one check. Its result is compared with those of the other legs, as JSON; an error is a failed check. */
  async check(name, act) {
    try {
      const saw = await within(LIMIT, act());
      this.report({ check: name, ok: true, saw: saw ?? null });
    } catch (error) {
      const cause = error?.cause ? `: ${error.cause.message}` : ''; // the reason of fetch's failure
      this.report({ check: name, ok: false, saw: `${error?.message ?? error}${cause}`.slice(0, 300) });
    }
  }

  /**
   * Restarts the server, `times` by SIGKILL and fewer times in order, each time while an order is handled. Another order is sent
   * while it is away.
   *
   * @param flow waits for the next sign of the subscription of a server's generation (1, 2, ...)
   * @param order sends one order that must not be handled twice, or undefined; the server writes it down as it arrives
   * @param phase awaited before each restart: for a client that tries by a clock of its own, not so long after its loss
   */
  async restarts({ flow, order, times, phase = async () => {} }) {
    try {
      await within(FLOW_LIMIT, flow(this.generation));
    } catch (error) {
      this.report({ check: 'the subscription flows', ok: false, saw: error.message });
      return;
    }
    this.report({ check: 'the subscription flows', ok: true, saw: null });
    let flows = true;
    for (const signal of [...Array(times).fill('SIGKILL'), ...Array(times > 3 ? 3 : 1).fill('SIGTERM')]) {
      if (flows) {
        await phase();
        flows = await this.restart(signal, flow, order);
      } else {
        this.report({ restart: signal, seconds: null, back: null }); // it is lost for good
      }
    }
    if (order) this.reportOrders();
  }

  async restart(signal, flow, order) {
    const id = `${this.row.name}-${this.generation}`;
    if (order) {
      this.order(order, id);
      const arrived = async () => { while (!this.seen().some((line) => line.order === id)) await sleep(5); };
      await within(LIMIT, arrived()).catch(() => {}); // reportOrders finds that it is missing
    }
    const killed = performance.now();
    await this.server.end(signal);
    await sleep(AWAY / 2 - (performance.now() - killed));
    if (order) this.order(order, `${id}-away`);
    await sleep(AWAY - (performance.now() - killed));
    const elapsed = () => (performance.now() - killed) / 1000;
    const flows = flow(this.generation + 1).then(elapsed);
    await this.startServer();
    const back = elapsed();
    const seconds = await within(FLOW_LIMIT, flows).catch(() => null);
    this.report({ restart: signal, seconds, back });
    if (seconds === null) return within(FLOW_LIMIT, flow(this.generation)).then(() => true, () => false);
    await sleep(300);
    return true;
  }

  /** After the restarts: the subscriptions that the last server wrote down. */
  subscribedAgain() {
    return this.check('subscribed again: what was not left, once', async () => {
      const last = this.seen().filter((line) => line.subscribed && Number(line.generation) === this.generation);
      return last.map((line) => line.subscribed).sort();
    });
  }

  order(send, id) {
    this.ordered += 1;
    try {
      send(id);
    } catch { /* a client that takes nothing while it is not connected */ }
  }

  reportOrders() {
    const counts = {};
    for (const { order } of this.seen()) if (order !== undefined) counts[order] = (counts[order] ?? 0) + 1;
    const orders = Object.values(counts);
    this.report({ orders: this.ordered, arrived: orders.length, twice: orders.filter((count) => count > 1).length });
  }

  report(result) {
    process.stdout.write(`${JSON.stringify({ row: this.row.name, leg: this.name, ...result })}\n`);
  }
}

/** The promise's result, or an error after `seconds`. */
export function within(seconds, promise) {
  let timer;
  const late = new Promise((_, fail) => { timer = setTimeout(() => fail(new Error(`nothing within ${seconds} s`)), seconds * 1000); });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Remembers the newest generation that a subscription has brought; `flow` of [`Leg.restarts`]. */
export class Flow {
  #newest = 0;
  #waiting = new Set();

  saw(generation) {
    this.#newest = Math.max(this.#newest, Number(generation));
    for (const wait of this.#waiting) if (this.#newest >= wait.generation) { this.#waiting.delete(wait); wait.done(); }
  }

  until = (generation) => new Promise((done) => {
    if (this.#newest >= generation) done();
    else this.#waiting.add({ generation, done });
  });
}
