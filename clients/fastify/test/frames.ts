/** The control messages of `mainstay.v1`, as tests write and compare them. */

import type { Ack, Auth, AuthResult, Beat, Bytes, Data, End, Gap, GoAway, Resume, Type, Volatile } from "@mainstay/client/protocol";

// `Type` is an enum of constants, which does not exist at run time.
export const DATA = 0 as Type.Data;
export const HELLO = 1 as Type.Hello;
export const WELCOME = 2 as Type.Welcome;
export const ACK = 3 as Type.Ack;
export const PING = 4 as Type.Ping;
export const PONG = 5 as Type.Pong;
export const GO_AWAY = 6 as Type.GoAway;
export const GAP = 7 as Type.Gap;
export const END = 8 as Type.End;
export const AUTH = 9 as Type.Auth;
export const AUTH_RESULT = 10 as Type.AuthResult;
export const VOLATILE = 11 as Type.Volatile;
export const REFUSE = 12 as Type.Refuse;
export const REPLACED = 128 as Type.Replaced;

export const data = (data: Data) => ({ type: DATA, data });
export const ack = (acknowledged: number): Ack => ({ type: ACK, acknowledged });
export const ping = (nonce: number, sent: number, acknowledged: number): Beat => ({ type: PING, nonce, sent, acknowledged });
export const pong = (nonce: number, sent: number, acknowledged: number): Beat => ({ type: PONG, nonce, sent, acknowledged });
export const gap = (first: number, count: number): Gap => ({ type: GAP, first, count, cause: 1 });
export const end = (code: number, reason: string, acknowledged: number, delivered: number): End => ({ type: END, code, reason, acknowledged, delivered });
export const auth = (credentials: Bytes): Auth => ({ type: AUTH, credentials });
export const authResult = (accepted: boolean): AuthResult => ({ type: AUTH_RESULT, accepted, expiresInMs: 0 });
export const volatile = (data: Data): Volatile => ({ type: VOLATILE, data });
export const goAway = (reason: string, latestMs: number, closeInMs: number): GoAway => ({ type: GO_AWAY, reason, delay: { earliestMs: 0, latestMs }, closeInMs });

/** The field `resume` of a HELLO. */
export const resumeAt = (token: Bytes, acknowledged: number, sent: number, firstHeld: number): Resume => ({ token, acknowledged, sent, firstHeld });

/** The part of a REFUSE that most tests compare. */
export const refusalIn = ({ type, code, temporary }: any) => [type, code, temporary];

/** The part of an END that most tests compare. */
export const endIn = ({ type, code, reason }: any) => [type, code, reason];
