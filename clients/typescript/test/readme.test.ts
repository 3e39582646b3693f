/** README.md's code compiles against the built types: every block that is tagged `run`. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const at = (path: string) => fileURLToPath(new URL(path, import.meta.url));

test("the examples of README.md compile", () => {
  // Under `dist`, which git ignores, so that imports of packages resolve as in this package.
  const folder = at("../dist/readme");
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder);
  const readme = readFileSync(at("../README.md"), "utf8");
  const blocks = [...readme.matchAll(/^```(tsx?) run\n(.*?)^```$/gms)];
  assert.ok(blocks.length > 5);
  for (const [index, [, type, code]] of blocks.entries()) writeFileSync(`${folder}/${index + 1}.${type}`, code!);
  const compilerOptions = { noEmit: true, jsx: "react-jsx", types: ["node"], noUnusedLocals: false };
  writeFileSync(`${folder}/tsconfig.json`, JSON.stringify({ extends: "../../../tsconfig.json", compilerOptions, include: ["."] }));
  const { stdout, status } = spawnSync(at("../../node_modules/.bin/tsc"), ["--project", folder], { encoding: "utf8" });
  assert.equal(`${stdout}${status}`, "0");
});
