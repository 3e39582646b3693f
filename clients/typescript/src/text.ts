/** Text, bytes, and UTF-8: the functions on messages that both entry points need. `/plain` does not load `wire.ts`. */

import type { Bytes, Data, Received } from "./wire.js";

// Made when first needed: jsdom has neither, and an import alone must succeed there.
let encoder: TextEncoder | undefined;
let decoder: TextDecoder | undefined;

/** A text as UTF-8; bytes as they are. */
export const bytesOf = (data: Data): Bytes => (typeof data === "string" ? (encoder ??= new TextEncoder()).encode(data) : data);

/** Bytes as text. @throws TypeError if they are not UTF-8 */
export const textOf = (bytes: Bytes): string => (decoder ??= new TextDecoder("utf-8", { fatal: true, ignoreBOM: true })).decode(bytes);

/** Payload bytes of all of these. */
export const sizeOf = (messages: (Data | { length: number })[]): number => messages.reduce((sum, data) => sum + bytesOf(data as Data).length, 0);

/** A received message as text or bytes. */
export const viewOf = (data: Received): Data => (typeof data === "string" ? data : new Uint8Array(data));
