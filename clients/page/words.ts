/** The words of this page's language, and how values are put into them. */

/** One language of `words.json`. */
export type Words = (typeof import("./words.json", { with: { type: "json" } }))["en"];

declare global {
  /** Put here by `build.mjs`. */
  const WORDS: Words;
}

export const fill = (words: string, values: { [name: string]: string | number }) => words.replace(/\{(\w+)\}/g, (_, name) => `${values[name] ?? ""}`);

export const inSeconds = (milliseconds: number, digits: number) => fill(WORDS.seconds, { n: (milliseconds / 1000).toFixed(digits) });
export const seconds = (milliseconds: number) => inSeconds(milliseconds, milliseconds < 9950 ? 2 : 1);
/** For what changes while it is read. */
export const tenths = (milliseconds: number) => inSeconds(milliseconds, 1);
