/**
 * The bytes of each client, ours and others, as npm carries it: esbuild's minified ES2022 module of the whole entry point, and that
 * compressed by gzip -9, all in one run. The table in README.md is this one; `UPDATE=1 npm test` writes it.
 */

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

/** Bytes of gzip, 1 % above the current sizes. The goals are 3600 without sessions and 9216 with them: correctness comes first. */
const PLAIN = 5_320;
const SESSION = 12_350;

/** Separates entry points that are bundled as one. */
const AND = "` and `";

const README = new URL("../README.md", import.meta.url);
const MARKS = ["<!-- sizes: written by size.test.ts -->\n", "<!-- end of sizes -->"] as const;

/** Entry points, and what they do. The columns of other clients follow their documents and our tests of them. */
const clients: [entry: string, reconnects: string, noticesSilence: string, resumes: string][] = [
  ["@mainstay/client/plain", "yes", "with `ping` or `silenceLimitMs`", "no"],
  ["@mainstay/client", "yes", "yes", "both ways"],
  [`@mainstay/client${AND}@mainstay/client/reload`, "yes", "yes", "both ways, over a reload too"],
  ["partysocket/ws", "yes", "no", "no"],
  ["reconnecting-websocket", "yes", "no", "no"],
  ["graphql-ws/client", "yes, 5 times", "no; pings if asked to", "no"],
  ["partysocket", "yes", "no", "no"],
  ["phoenix", "yes", "yes", "no"],
  ["socket.io-client", "yes", "yes", "from the server, if the server allows it"],
  ["@microsoft/signalr", "if asked to, 4 times", "yes", "both ways, if asked to"],
  ["centrifuge", "yes", "yes", "from the server, where a channel has history"],
];

test("the bundles stay within their limits, and README.md has their sizes and those of other clients", async () => {
  const sizes = new Map<string, [minified: number, zipped: number]>();
  for (const [entry] of clients) sizes.set(entry, await sizeOf(entry));
  const rows = clients.map(([entry, ...does]) => [`\`${entry}\``, ...sizes.get(entry)!.map((bytes) => bytes.toLocaleString("en")), ...does]);
  const table = align([["entry point", "minified", "gzip -9", "reconnects", "notices silence", "resumes"], ...rows]);
  console.log(table);
  if (process.env.UPDATE) write(table);

  const [plain, session] = [sizes.get("@mainstay/client/plain")![1], sizes.get("@mainstay/client")![1]];
  assert.ok(plain <= PLAIN, `@mainstay/client/plain: ${plain} bytes, ${PLAIN} are allowed`);
  assert.ok(session <= SESSION, `@mainstay/client: ${session} bytes, ${SESSION} are allowed`);
  for (const [entry, measured] of [["@mainstay/client/plain", plain], ["@mainstay/client", session]] as const) {
    const stated = Number(new RegExp(`\`${entry}\` *\\| *[\\d,]+ *\\| *([\\d,]+)`).exec(readFileSync(README, "utf8"))?.[1]!.replaceAll(",", ""));
    assert.ok(Math.abs(stated - measured) <= 0.02 * measured, `README.md states ${stated} bytes of ${entry}, and there are ${measured}: UPDATE=1 npm test`);
  }
});

async function sizeOf(entry: string): Promise<[minified: number, zipped: number]> {
  const resolveDir = fileURLToPath(new URL(".", import.meta.url));
  const both = entry.split(AND);
  const isOne = both.length === 1;
  const { outputFiles } = await build({
    ...(isOne ? { entryPoints: [entry] } : { stdin: { contents: both.map((name) => `export * from "${name}";`).join("\n"), resolveDir } }),
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    platform: "browser",
    write: false,
    absWorkingDir: resolveDir,
    external: ["react"],
  });
  const { contents } = outputFiles[0]!;
  return [contents.length, gzipSync(contents, { level: 9 }).length];
}

/** Returns a Markdown table with aligned columns, numbers to the right. */
function align(rows: string[][]): string {
  const isNumber = (column: number) => /^\d/.test(rows[1]![column]!);
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  const pad = (cell: string, column: number) => (isNumber(column) ? cell.padStart(widths[column]!) : cell.padEnd(widths[column]!));
  const lines = rows.map((row) => `| ${row.map(pad).join(" | ")} |`);
  const rule = `|${widths.map((width, column) => (isNumber(column) ? `${"-".repeat(width + 1)}:` : "-".repeat(width + 2))).join("|")}|`;
  return `${[lines[0], rule, ...lines.slice(1)].join("\n")}\n`;
}

function write(table: string): void {
  const text = readFileSync(README, "utf8");
  const [begin, end] = MARKS.map((mark) => text.indexOf(mark)) as [number, number];
  assert.ok(begin >= 0 && end > begin, "README.md has no marks for the sizes");
  writeFileSync(README, `${text.slice(0, begin)}${MARKS[0]}${table}${text.slice(end)}`);
}
