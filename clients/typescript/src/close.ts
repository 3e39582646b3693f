/**
 * What a client does after a close with a code: it stops, or it reconnects. Its wait is widely spread if others probably reconnect
 * too, and short if only this connection is concerned.
 *
 * Source: `docs/PROTOCOL.md` "Closing".
 */

export const isFinal = (code: number): boolean => code === 3000 || code === 3003 || (code > 4499 && code < 5000);

export const concernsOne = (code: number): boolean =>
  (code > 1001 && code < 1011 && (code < 1004 || code > 1006)) || code === 3008 || code === 4400 || (code > 4407 && code < 4412);

/** Returns the action as one word. */
export function closeAction(code: number): "reconnect" | "reconnect-alone" | "stop" {
  if (isFinal(code)) return "stop";
  return concernsOne(code) ? "reconnect-alone" : "reconnect";
}
