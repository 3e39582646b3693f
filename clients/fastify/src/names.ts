/**
 * The names under which the registry finds sessions and tombstones. A server never stores a secret. It stores a hash of
 * the secret together with the owner that presents it, so a secret that another owner stole names nothing.
 *
 * Source: `docs/PROTOCOL.md` "Tokens and names".
 */

import { createHash } from "node:crypto";

export type Name = string;

export const toHex = (bytes: Uint8Array): string => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("hex");

/** Returns the name of a secret that `owner` presents. An owner is a principal at a path. */
export function nameOf(owner: string, secret: Uint8Array): Name {
  const bytes = Buffer.from(owner);
  const length = Buffer.alloc(8);
  length.writeBigUInt64BE(BigInt(bytes.length));
  return createHash("sha256").update(length).update(bytes).update(secret).digest("hex").slice(0, 32);
}
