/** Text, bytes, and UTF-8: what both entry points need of messages. `/plain` does not load `wire.ts`. */

/** Bytes of a buffer that is not shared, written so that TypeScript below 5.7, which has no name for them, reads it too. */
export type Bytes = ReturnType<Uint8ArrayConstructor["of"]>;

/** Application data. */
export type Data = string | Bytes;

/** A message as a connection delivers it, which is asked for array buffers. */
export type Received = string | ArrayBuffer;

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
