// Makes the CommonJS half of a package's `dist`, file by file, of what the compiler made: so all entry points share their modules.
//
//   node ../common.mjs        in the package's folder, after tsc

import { transform } from "esbuild";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { asCommon } from "./typescript/declarations.mjs";

const URL_OF = 'const importMetaUrl = require("node:url").pathToFileURL(__filename).href;';

for (const name of await readdir("dist")) {
  const path = join("dist", name);
  const text = await readFile(path, "utf8");
  if (name.endsWith(".d.ts")) await writeFile(path.replace(/ts$/, "cts"), asCommon(text));
  if (!name.endsWith(".js")) continue;
  const define = { "import.meta.url": "importMetaUrl" };
  const { code } = await transform(text, { format: "cjs", platform: "node", target: "node20", define, banner: text.includes("import.meta.url") ? URL_OF : "" });
  await writeFile(path.replace(/js$/, "cjs"), asCommon(code));
}
