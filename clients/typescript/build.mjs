// Makes `dist`, which is what npm carries: the declarations are the compiler's, the code is bundled and minified, and the names of
// internal members are shortened in it.
//
//   node build.mjs        in clients/typescript, after tsc
//
// No list of internal names is kept by hand, so none can be wrong: they are all names in the code, without the words of the public
// declarations and without every name that the platform declares. A name that is kept needlessly costs bytes and nothing else. Names
// with a capital are those of const enums, of which no name is left in any case.

import { build, transform } from "esbuild";
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { asCommon } from "./declarations.mjs";

const ENTRIES = ["index", "plain", "reload", "react"];
/** Entry points for platforms that lack globals of browsers: each is one bundle, which brings the missing ones. */
const ALONE = ["wx", "native"];
/** Entry points for other packages of ours, whose names are not shortened. */
const WHOLE = ["protocol", "testing"];
/** Words of the platform, or of the public declarations, that are internal wherever they name a member without quotes. */
const OURS = ["written", "acknowledged", "queue", "ready", "items", "base", "replaced", "window", "accept", "outputs", "observe", "transmit"];

/** How often the build tries to exchange two short names: for about fifteen seconds. */
const SWAPS = 14_000;

const at = (path) => fileURLToPath(new URL(path, import.meta.url));
const read = (path) => readFile(at(path), "utf8");
const withoutComments = (text) => text.replace(/\/\*.*?\*\//gs, "");

const shared = { absWorkingDir: at("."), outdir: at("dist"), bundle: true, format: "esm", target: "es2022", sourcemap: true, charset: "utf8" };
const pages = { ...shared, entryPoints: ENTRIES.map((name) => `src/${name}.ts`), minify: true, splitting: true, chunkNames: "shared-[hash]", external: ["react"] };

/** Returns the words in the declarations of everything that the entry points export, directly or not. */
async function publicWords() {
  const declarations = new Map();
  const texts = new Map();
  for (const file of (await readdir(at("dist"))).filter((name) => name.endsWith(".d.ts"))) {
    const text = withoutComments(await read(`dist/${file}`)).replace(/^ +private .*$/gm, "");
    texts.set(file, text);
    for (const block of text.split(/^(?=export |declare |interface |type )/m)) {
      const name = /^(?:export |declare |abstract )*(?:class|interface|type|const enum|const|function) (\w+)/.exec(block)?.[1];
      if (name) declarations.set(name, [...(declarations.get(name) ?? []), ...block.match(/[\w$]+/g)]);
    }
  }
  const found = new Set();
  const follow = (words) => {
    for (const word of words.filter((word) => !found.has(word))) {
      found.add(word);
      follow(declarations.get(word) ?? []);
    }
  };
  for (const name of [...ENTRIES, ...ALONE]) {
    for (const [exported] of texts.get(`${name}.d.ts`).matchAll(/^export (?:\{.*\}|.*?\b(?:class|interface|type|const|function) \w+)/gm)) follow(exported.match(/\w+/g));
  }
  return found;
}

/** Returns the names of all members and globals in the platform's declarations, which come with the compiler. */
async function platformNames() {
  const compiler = createRequire(createRequire(import.meta.url).resolve("typescript/package.json"));
  const manifest = compiler.resolve(`@typescript/typescript-${process.platform}-${process.arch}/package.json`);
  const folder = new URL("lib/", `file://${manifest}`);
  const files = (await readdir(folder)).filter((name) => /^lib\.(es|dom|decorators)/.test(name));
  const texts = await Promise.all(files.map((name) => readFile(new URL(name, folder), "utf8")));
  const declared = /(?:^|[{;])\s*(?:(?:readonly|get|set|declare|var|let|const|function|class) )*["[]?(?:Symbol\.)?([\w$]+)["\]]?\??[:(<;,]/gm;
  return texts.flatMap((text) => Array.from(withoutComments(text).matchAll(declared), ([, name]) => name));
}

/** Imports a class that another entry point exports from there, so that it is no copy. */
const inCommon = { name: "in common", setup: (build) => build.onResolve({ filter: /^\.\/index\.js$/ }, () => ({ path: "./index.cjs", external: true })) };

/**
 * Returns the same short names in another order, which gzip compresses better. The function exchanges two names, keeps that if the two
 * bundles for browsers become smaller, and repeats: in the same way in every build. It measures what a page gets, which the bundler
 * of the page minifies again.
 */
async function bestNames(given) {
  const longs = Object.keys(given).filter((long) => given[long]);
  const marks = Object.fromEntries(longs.map((long, number) => [long, `$${number}$`]));
  const bundle = { ...pages, ...mangled, mangleCache: marks, splitting: false, sourcemap: false, write: false, plugins: [inBrowsers] };
  const made = await Promise.all(["index", "plain"].map((name) => build({ ...bundle, entryPoints: [`src/${name}.ts`] })));
  const again = await Promise.all(made.map(({ outputFiles }) => transform(outputFiles[0].text, { format: "esm", target: "es2022", minify: true })));
  const texts = again.map(({ code }) => code.split(/\$(\d+)\$/));
  const shorts = longs.map((long) => given[long]);
  const size = () => texts.reduce((sum, parts) => sum + gzipSync(parts.map((part, i) => (i % 2 ? shorts[part] : part)).join(""), { level: 9 }).length, 0);
  const used = [...new Set(texts.flatMap((parts) => parts.filter((_, i) => i % 2)))];
  let least = size();
  for (let i = 0, seed = 1; i < SWAPS; i++) {
    const [a, b] = [0, 0].map(() => (seed = (seed * 48271) % 2147483647)).map((drawn) => used[drawn % used.length]);
    [shorts[a], shorts[b]] = [shorts[b], shorts[a]];
    const now = size();
    if (now > least) [shorts[a], shorts[b]] = [shorts[b], shorts[a]];
    else least = now;
  }
  return Object.fromEntries(longs.map((long, number) => [long, shorts[number]]));
}

/** Replaces `host.ts` in the bundles for browsers. */
const inBrowsers = { name: "in browsers", setup: (build) => build.onResolve({ filter: /^\.\/host\.js$/ }, () => ({ path: at("src/host.browser.ts") })) };

await rm(at("dist/browser"), { recursive: true, force: true });
for (const name of await readdir(at("dist"))) if (/\.c?js(\.map)?$|\.cts$/.test(name)) await rm(at(`dist/${name}`));
const all = { ...pages, entryPoints: [...ENTRIES, ...ALONE].map((name) => `src/${name}.ts`) };
const { mangleCache } = await build({ ...all, mangleProps: /^[a-z]/, mangleCache: {}, write: false });
const others = new Set([...(await publicWords()), ...(await platformNames())]);
for (const name of OURS) others.delete(name);
const own = Object.keys(mangleCache).filter((name) => !others.has(name));
const mangled = { mangleProps: new RegExp(`^(?:${own.join("|")})$`) };
const { mangleCache: given } = await build({ ...pages, ...mangled, mangleCache: {}, write: false });
const names = await bestNames(given);
await build({ ...pages, ...mangled, mangleCache: names });
await build({ ...pages, ...mangled, mangleCache: names, outdir: at("dist/browser"), plugins: [inBrowsers] });

const alone = { splitting: false, target: "es2018", inject: [at("src/platform.ts")], define: { "globalThis.crypto": "platformCrypto" } };
const common = { splitting: false, format: "cjs", outExtension: { ".js": ".cjs" }, sourcemap: false };
const named = { ...mangled, mangleCache: names };
for (const name of [...ENTRIES, ...ALONE]) {
  const entry = { ...pages, ...named, ...(ALONE.includes(name) && alone), entryPoints: [`src/${name}.ts`] };
  if (ALONE.includes(name)) await build({ ...entry, splitting: false });
  const plugins = name === "react" ? [inCommon] : [];
  await build({ ...entry, ...common, plugins });
}
for (const name of WHOLE) {
  await build({ ...shared, entryPoints: [`src/${name}.ts`] });
  await build({ ...shared, ...common, entryPoints: [`src/${name}.ts`] });
}
// The tools of mini-programs copy one folder: it has the file that each import names.
await mkdir(at("dist/mini"), { recursive: true });
await writeFile(at("dist/mini/wx.js"), await read("dist/wx.cjs"));
await writeFile(at("dist/mini/index.js"), 'module.exports = require("./wx.js");\n');
for (const name of await readdir(at("dist"))) {
  if (name.endsWith(".d.ts")) await writeFile(at(`dist/${name.replace(/ts$/, "cts")}`), asCommon(await read(`dist/${name}`)));
}
