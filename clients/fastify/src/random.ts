/** Bytes of the platform's cryptographic randomness, fetched many at a time: a handshake needs few, and five times. */

import { randomFillSync } from "node:crypto";
import type { Bytes } from "@mainstay/client/protocol";

const pool = new Uint8Array(4096);
let used = pool.length;

/** `length`: at most 4096. What was given out is not kept. */
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
