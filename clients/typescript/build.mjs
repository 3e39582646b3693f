// Makes `dist`, which is what npm carries: the declarations are the compiler's, the code is bundled and minified, and
// the names of what is nobody's business but ours are shortened in it.
//
//   node build.mjs        in clients/typescript, after tsc
//
// Which names these are nobody has to say, and nobody can get wrong: all that the code has, without the words of the
// public declarations and without every name that the platform declares. What is kept needlessly costs bytes
// and nothing else. Names with a capital are those of const enums, of which no name is left in any case.

import { build } from "esbuild";
import { readdir, readFile, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

const at = (path) => fileURLToPath(new URL(path, import.meta.url));
const words = (text) => text.match(/[\w$]+/g) ?? [];
/** Everything above and in front of a line that a declaration does not promise to anybody. */
const promised = (text) => text.replace(/\/\*.*?\*\//gs, "").replace(/^ +(private|protected) .*$/gm, "");

const ENTRIES = ["index", "plain", "react", "reload"];
const shared = { absWorkingDir: at("."), outdir: at("dist"), bundle: true, format: "esm", target: "es2022", sourcemap: true, charset: "utf8" };
const pages = { ...shared, entryPoints: ENTRIES.map((name) => `src/${name}.ts`), minify: true, splitting: true, chunkNames: "shared-[hash]", external: ["react"] };

/** The words of all that the entry points export, and of what that is made of. */
async function publicWords() {
  const declarations = new Map();
  for (const name of await readdir(at("dist"))) {
    if (!name.endsWith(".d.ts")) continue;
    const blocks = promised(await readFile(at(`dist/${name}`), "utf8")).split(/^(?=export |declare |interface |type )/m);
    for (const block of blocks) {
      const name = /^(?:export |declare |abstract )*(?:class|interface|type|const enum|const|function) (\w+)/.exec(block)?.[1];
      if (name) declarations.set(name, [...(declarations.get(name) ?? []), ...words(block)]);
    }
  }
  const found = new Set();
  const follow = (list) => {
    for (const word of list) {
      if (found.has(word)) continue;
      found.add(word);
      follow(declarations.get(word) ?? []);
    }
  };
  for (const name of ENTRIES) {
    const entry = promised(await readFile(at(`dist/${name}.d.ts`), "utf8"));
    for (const [, exported] of entry.matchAll(/^export (?:declare )?(?:type )?(\{.*\}|(?:class|interface|type|const|function) \w+)/gm)) follow(words(exported));
  }
  return found;
}

/** The names of all members and globals in the platform's declarations, which come with the compiler. */
async function platformNames() {
  const compiler = createRequire(createRequire(import.meta.url).resolve("typescript/package.json"));
  const manifest = compiler.resolve(`@typescript/typescript-${process.platform}-${process.arch}/package.json`);
  const folder = new URL("lib/", `file://${manifest}`);
  const files = (await readdir(folder)).filter((name) => /^lib\.(es|dom|decorators)/.test(name));
  const texts = await Promise.all(files.map((name) => readFile(new URL(name, folder), "utf8")));
  const member = /(?:^|[{;])\s*(?:(?:readonly|get|set|declare|var|let|const|function|class) )*["[]?(?:Symbol\.)?([\w$]+)["\]]?\??[:(<;,]/gm;
  return new Set(texts.flatMap((text) => Array.from(text.replace(/\/\*.*?\*\//gs, "").matchAll(member), ([, name]) => name)));
}

const { mangleCache } = await build({ ...pages, mangleProps: /^[a-z]/, mangleCache: {}, write: false });
const [known, platform] = [await publicWords(), await platformNames()];
const own = Object.keys(mangleCache).filter((name) => !known.has(name) && !platform.has(name));
if (process.env.SHOW) {
  console.log("own", own.join(" "));
  console.log("public only", Object.keys(mangleCache).filter((name) => known.has(name) && !platform.has(name)).join(" "));
  console.log("platform", Object.keys(mangleCache).filter((name) => platform.has(name)&&!known.has(name)).join(" "));
  console.log("both", Object.keys(mangleCache).filter((name) => platform.has(name)&&known.has(name)).join(" "));
}
await build({ ...pages, mangleProps: new RegExp(`^(?:${own.join("|")})$`) });
await build({ ...shared, entryPoints: ["src/protocol.ts"] });
