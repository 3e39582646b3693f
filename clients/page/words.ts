/** The words of this page's language, and functions that insert values into them. */

/** One language of `words.json`. */
export type Words = (typeof import("./words.json", { with: { type: "json" } }))["en"];

declare global {
  /** `build.mjs` defines it. */
  const WORDS: Words;
}

export const fill = (words: string, values: { [name: string]: string | number }) => words.replace(/\{(\w+)\}/g, (_, name) => `${values[name] ?? ""}`);

export const inSeconds = (milliseconds: number, digits: number) => fill(WORDS.seconds, { n: (milliseconds / 1000).toFixed(digits) });
export const seconds = (milliseconds: number) => inSeconds(milliseconds, milliseconds < 9950 ? 2 : 1);
/** For values that change while they are read. */
export const tenths = (milliseconds: number) => inSeconds(milliseconds, 1);
