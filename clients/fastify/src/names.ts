/**
 * What sessions and tombstones are found by. A server never stores a secret, only the hash of it together with the
 * owner who presents it: stolen by another owner it names nothing at all.
 *
 * Source: `docs/PROTOCOL.md` "Tokens and names".
 */

import { createHash } from "node:crypto";

export type Name = string;

export const toHex = (bytes: Uint8Array): string => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("hex");

/** The name of a secret as presented by `owner`: who, and where. */
export function nameOf(owner: string, secret: Uint8Array): Name {
  const bytes = Buffer.from(owner);
  const length = Buffer.alloc(8);
  length.writeBigUInt64BE(BigInt(bytes.length));
  return createHash("sha256").update(length).update(bytes).update(secret).digest("hex").slice(0, 32);
}
