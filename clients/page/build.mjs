// Makes the live page: one file without a request of its own, which `mainstay serve` carries.
//
//   node page/build.mjs        in clients/, after npm install

import { build, transform } from "esbuild";
import { readFile, writeFile } from "node:fs/promises";
import { argv } from "node:process";
import { fileURLToPath } from "node:url";

const source = (name) => fileURLToPath(new URL(name, import.meta.url));
export const TARGET = source("../../crates/mainstay-gateway/src/page.html");

/** The page, as it is to be. */
export async function page() {
  const script = await build({
    entryPoints: [source("page.ts")],
    bundle: true,
    minify: true,
    format: "iife",
    target: "es2022",
    charset: "utf8",
    legalComments: "none",
    write: false,
  });
  const style = await transform(await readFile(source("page.css"), "utf8"), { loader: "css", minify: true });
  const html = await readFile(source("index.html"), "utf8");
  // Functions, because a `$` in the code is no pattern.
  return html
    .replace("<style></style>", () => `<style>${style.code.trim()}</style>`)
    .replace("<script></script>", () => `<script>${script.outputFiles[0].text.trim()}</script>`);
}

if (argv[1] === fileURLToPath(import.meta.url)) await writeFile(TARGET, await page());
