// The common part of these programs: they send a number ten times a second, and log what they send and receive.
//
// A line of the log is a JSON object with `at` (milliseconds, as `Date.now()`) and one of `sent`, `got`, `refused`, `fate`,
// `event`. The judge (`xtask/src/losses/verdict.rs`) reads only these logs.

import { writeSync } from "node:fs";

const EVERY_MS = 100;

/** Appends a line to the log at once, so that the log of a killed process is complete. */
export const note = (entry) => writeSync(1, `${JSON.stringify({ at: Date.now(), ...entry })}\n`);

/** Sends a client's numbers, 1, 2, 3 ..., until SIGUSR2. */
export function count(send) {
  let n = 0;
  stoppable(setInterval(() => send(++n), EVERY_MS));
}

/**
 * Publishes a server's numbers: one every 100 ms since FACTS_SINCE (milliseconds), the same in every process. Each live
 * process sends them to its own clients; a client that connects later receives the later numbers.
 */
export function facts(publish) {
  const since = Number(process.env.FACTS_SINCE);
  let newest = Math.floor((Date.now() - since) / EVERY_MS);
  stoppable(setInterval(() => {
    for (const last = Math.floor((Date.now() - since) / EVERY_MS); newest < last; ) {
      newest += 1;
      note({ sent: newest });
      publish(String(newest));
    }
  }, EVERY_MS));
}

function stoppable(timer) {
  process.once("SIGUSR2", () => clearInterval(timer));
}
