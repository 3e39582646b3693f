/**
 * What a client does after a close with a code: `reconnect` where others probably do the same, so widely spread;
 * `reconnect-alone` where only this connection is concerned; `stop`.
 *
 * Source: `docs/PROTOCOL.md` "Closing".
 */
export type CloseAction = "reconnect" | "reconnect-alone" | "stop";

const ALONE = [1002, 1003, 1007, 1008, 1009, 1010, 3008, 4400, 4408, 4409, 4410, 4411];

export function closeAction(code: number): CloseAction {
  if (code === 3000 || code === 3003 || (code >= 4500 && code < 5000)) return "stop";
  return ALONE.includes(code) ? "reconnect-alone" : "reconnect";
}
