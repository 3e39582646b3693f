/** `docs/DEFAULTS.md` and the plugin state the same defaults, and each numeric option has a row that names it. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { settingsOf } from "../dist/options.js";

const rows = readFileSync(new URL("../../../docs/DEFAULTS.md", import.meta.url), "utf8").split("\n").map((line) => line.split(" | "));

/** The value as the document writes it: `25 s`, `2 minutes`, `1 MiB`, `1,024`; what is off has several words. */
function written(option: string, value: number | undefined): RegExp {
  if (value === undefined) return /\b(off|no limit)\b/;
  const count = (words: string) => new RegExp(`(?<![\\d.,])${words}`);
  if (option.endsWith("Ms")) return count(value < 120_000 ? (value === 0 ? "0" : `${value / 1000} s`) : `${value / 60_000} minutes`);
  const isBytes = option === "maxMessage" || option.endsWith("bytes");
  return count(isBytes ? `${value / 2 ** 20} MiB` : value.toLocaleString("en-US"));
}

test("each numeric option of the plugin has a row among the defaults, and its default stands there", () => {
  const { keep, accept, ...others } = settingsOf({});
  const windows = Object.entries({ keep, accept }).flatMap(([name, window]) => Object.entries(window).map(([unit, value]) => [`${name}.${unit}`, value]));
  const numbers = Object.entries(others).filter(([name, value]) => typeof value === "number" || /Ms$|^max/.test(name));
  assert.ok(numbers.length >= 10);
  const complaints = [...numbers, ...windows].map(([path, value]) => {
    const name = (path as string).split(".")[0];
    const row = rows.find(([first = ""]) => first.includes("astify") && first.includes(`\`${name}\``));
    if (!row) return `${name} has no row that names it`;
    return written(path as string, value as number | undefined).test(row[1] ?? "") ? undefined : `${path} is ${value}, and the row says: ${row[1]}`;
  });
  assert.deepEqual(complaints.filter((complaint) => complaint), []);
});
