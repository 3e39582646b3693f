/** The oracle: each message that a page sent must have come back, once and in order, except exactly those that a gap reports. */

import assert from "node:assert/strict";
import type { Fate, Outcome } from "@mainstay/client";
import type { Record } from "./page.js";

/** One session of a page, in the numbers that the page gave its messages. */
export interface Chapter {
  /** The session's number 1 is the message after this one. */
  offset: number;
  /** The last message that came back in it. */
  echoed: number;
  /** How it was lost; undefined: it lives. */
  fate: Fate | undefined;
  /** The last message that was accepted in it. */
  last: number;
}

/**
 * Checks a record whose last message came back, and returns its sessions in order. `seen`: the messages that the backend received in
 * each of them, if the test watched it.
 */
export function judge(record: Record, seen?: number[][]): Chapter[] {
  const troubles = record.log.flatMap((entry) => (entry.is === "trouble" ? [entry.what] : []));
  assert.deepEqual(troubles, [], "no error on the page");
  const chapters = read(record);
  assert.equal(chapters.at(-1)!.echoed, record.sent, "the last message came back");
  for (const chapter of chapters) checkFate(chapter);
  for (const [number, outcome] of Object.entries(record.outcomes)) {
    assert.equal(outcome, outcomeOf(Number(number), chapters), `what became of message ${number}`);
  }
  if (seen) checkSeen(chapters, seen);
  return chapters;
}

/** In every session messages come back one after the other from its first on: none missing, none repeated. */
function read({ log, sent }: Record): Chapter[] {
  const chapters: Chapter[] = [{ offset: 0, echoed: 0, fate: undefined, last: sent }];
  for (const entry of log) {
    const chapter = chapters.at(-1)!;
    if (entry.is === "echo") assert.equal(entry.number, ++chapter.echoed, "the next message that came back");
    if (entry.is !== "gap") continue;
    assert.ok(entry.fate, "the gap of a session has the fate of its messages");
    Object.assign(chapter, { fate: entry.fate, last: entry.accepted });
    const offset = chapter.offset + entry.fate.unknown;
    chapters.push({ offset, echoed: offset, fate: undefined, last: sent });
  }
  return chapters;
}

function checkFate({ offset, echoed, fate, last }: Chapter): void {
  if (!fate) return;
  assert.ok(fate.delivered <= fate.unknown && fate.unknown <= fate.last, "classes that do not overlap");
  assert.equal(offset + fate.last, last, "every message that was accepted is in a class");
  assert.equal(fate.resent, fate.unknown < fate.last, "undelivered messages are sent again");
  assert.ok(echoed - offset <= fate.unknown, "no message that came back counts as undelivered");
  if (fate.lost) assert.equal(fate.lost.first, echoed - offset + 1, "the server's lost messages follow those that came");
}

function outcomeOf(number: number, chapters: Chapter[]): Outcome {
  for (const { offset, fate } of chapters) {
    if (!fate || number <= offset + fate.delivered) return "delivered";
    if (number <= offset + fate.unknown) return "unknown";
  }
  return "not-delivered";
}

/** The backend received every message that counts as delivered, and none that counts as not delivered. */
function checkSeen(chapters: Chapter[], seen: number[][]): void {
  assert.equal(seen.length, chapters.length, "sessions that the backend saw");
  for (const [i, { offset, fate, last }] of chapters.entries()) {
    const numbers = seen[i]!;
    assert.deepEqual(numbers, numbers.map((_, index) => offset + index + 1), "the backend received each message once, in order");
    const from = fate ? fate.delivered : last - offset;
    const to = fate ? fate.unknown : last - offset;
    assert.ok(from <= numbers.length && numbers.length <= to, `${numbers.length} handed over, said to be ${from} to ${to}`);
  }
}
