import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { settingsOf } from "../dist/options.js";

const read = (path: string) => readFileSync(new URL(`../${path}`, import.meta.url), "utf8");

test("the example of the README is the one that the tests run, and has 15 lines at most", () => {
  const example = read("examples/echo.mjs");
  assert.ok(read("README.md").includes("```js\n" + example + "```"));
  assert.ok(example.trimEnd().split("\n").length <= 15);
});

test("the README names every option with its default", () => {
  for (const [name, value] of Object.entries(settingsOf({}))) {
    const row = read("README.md").split("\n").find((line) => line.startsWith(`| \`${name}\``));
    assert.ok(row, name);
    if (typeof value === "number") assert.equal(row.split("|")[2]!.trim(), String(value), name);
  }
});
