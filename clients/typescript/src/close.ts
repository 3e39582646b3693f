/**
 * What a client does after a close with a code: it stops, or it reconnects: widely spread where others probably do the
 * same, sooner where only this connection is concerned.
 *
 * Source: `docs/PROTOCOL.md` "Closing".
 */

export const isFinal = (code: number): boolean => code === 3000 || code === 3003 || (code > 4499 && code < 5000);

export const concernsOne = (code: number): boolean =>
  [1002, 1003, 1007, 1008, 1009, 1010, 3008, 4400, 4408, 4409, 4410, 4411].includes(code);

/** The same as one word. */
export function closeAction(code: number): "reconnect" | "reconnect-alone" | "stop" {
  if (isFinal(code)) return "stop";
  return concernsOne(code) ? "reconnect-alone" : "reconnect";
}
