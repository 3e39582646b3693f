/** Cryptographically random bytes, fetched from the platform 4096 at a time: a handshake needs a few bytes five times. */

import { randomFillSync } from "node:crypto";
import type { Bytes } from "@mainstay/client/protocol";

const pool = new Uint8Array(4096);
let used = pool.length;

/** Returns `length` random bytes, at most 4096. The pool does not keep a copy of them. */
export function randomBytes(length: number): Bytes {
  if (used + length > pool.length) {
    randomFillSync(pool);
    used = 0;
  }
  const bytes = pool.slice(used, used + length);
  pool.fill(0, used, used + length);
  used += length;
  return bytes;
}
