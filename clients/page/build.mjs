// Makes the live page, for each language one file, and the operator's console. Each needs no other file and is part of
// `mainstay serve`.
//
//   node page/build.mjs        in clients/, after npm install

import { build, transform } from "esbuild";
import { readFile, writeFile } from "node:fs/promises";
import { argv } from "node:process";
import { fileURLToPath } from "node:url";

const source = (name) => fileURLToPath(new URL(name, import.meta.url));
const target = (name) => source(`../../crates/mainstay-cli/src/${name}`);

/** The file of each language's page. */
export const TARGETS = { en: target("page.html"), zh: target("page.zh.html") };

/** The file of the console. */
export const CONSOLE = target("console.html");

/** Returns the page in this language. */
export async function page(language) {
  const words = JSON.parse(await readFile(source("words.json"), "utf8"))[language];
  return inOneFile({ html: "index.html", css: "page.css", code: "page.ts" }, words);
}

/** Returns the console. */
export function operators() {
  return inOneFile({ html: "console.html", css: "console.css", code: "console.ts" }, {});
}

async function inOneFile(sources, words) {
  const script = await build({
    entryPoints: [source(sources.code)],
    bundle: true,
    minify: true,
    format: "iife",
    target: "es2022",
    charset: "utf8",
    legalComments: "none",
    define: { WORDS: JSON.stringify(words) },
    write: false,
  });
  const style = await transform(await readFile(source(sources.css), "utf8"), { loader: "css", minify: true });
  const html = (await readFile(source(sources.html), "utf8")).replace(/\{\{(\w+)\}\}/g, (_, name) => {
    if (typeof words[name] !== "string") throw new Error(`words.json has no ${name}`);
    return words[name];
  });
  // Functions, so that a `$` in the code is no pattern.
  return html
    .replace("<style></style>", () => `<style>${style.code.trim()}</style>`)
    .replace("<script></script>", () => `<script>${script.outputFiles[0].text.trim()}</script>`);
}

if (argv[1] === fileURLToPath(import.meta.url)) {
  for (const [language, path] of Object.entries(TARGETS)) await writeFile(path, await page(language));
  await writeFile(CONSOLE, await operators());
}
