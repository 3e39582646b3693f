// What all of these programs do: say a number ten times a second, and write down what they say and receive.
//
// A line of the log is a JSON object with `at` (milliseconds, as `Date.now()`) and one of `said`, `got`, `refused`, `fate`,
// `event`. The judge (`xtask/src/losses/verdict.rs`) knows nothing but these logs.

import { writeSync } from "node:fs";

const EVERY = 100;

/** Appended at once, so that a process that is killed has written what it did. */
export const note = (entry) => writeSync(1, `${JSON.stringify({ at: Date.now(), ...entry })}\n`);

/** A client counts by itself: 1, 2, 3 ..., until it is told to stop (SIGUSR2). */
export function count(say) {
  let n = 0;
  stoppable(setInterval(() => say(++n), EVERY));
}

/**
 * The servers' numbers are facts of the world, one every 100 ms: each process that lives tells them to its own clients, and
 * whoever asks later is told the later ones. FACTS_SINCE (milliseconds) is when they began.
 */
export function facts(tell) {
  const since = Number(process.env.FACTS_SINCE);
  let told = Math.floor((Date.now() - since) / EVERY);
  stoppable(setInterval(() => {
    for (const last = Math.floor((Date.now() - since) / EVERY); told < last; ) {
      told += 1;
      note({ said: told });
      tell(String(told));
    }
  }, EVERY));
}

function stoppable(timer) {
  process.once("SIGUSR2", () => clearInterval(timer));
}
