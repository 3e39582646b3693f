// Makes the CommonJS half of `dist`, file by file, of what the compiler made: so both entry points share their modules.
//
//   node build.mjs        in clients/fastify, after tsc

import { transform } from "esbuild";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { asCommon } from "../typescript/declarations.mjs";

const at = (name) => fileURLToPath(new URL(`dist/${name}`, import.meta.url));
const URL_OF = 'const importMetaUrl = require("node:url").pathToFileURL(__filename).href;';

for (const name of await readdir(at(""))) {
  const text = await readFile(at(name), "utf8");
  if (name.endsWith(".d.ts")) await writeFile(at(name.replace(/ts$/, "cts")), asCommon(text));
  if (!name.endsWith(".js")) continue;
  const define = { "import.meta.url": "importMetaUrl" };
  const { code } = await transform(text, { format: "cjs", platform: "node", target: "node20", define, banner: text.includes("import.meta.url") ? URL_OF : "" });
  await writeFile(at(name.replace(/js$/, "cjs")), asCommon(code));
}
