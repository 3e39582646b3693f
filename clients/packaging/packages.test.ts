/** The npm packages as `npm pack` makes them, checked by linters, by an old and a new compiler, by `import` and by `require`. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { checkPackage, createPackageFromTarballData } from "@arethetypeswrong/core";
import { publint } from "publint";
import { formatMessage } from "publint/utils";

const CLIENTS = fileURLToPath(new URL("..", import.meta.url));
const require = createRequire(import.meta.url);
const home = mkdtempSync(join(tmpdir(), "mainstay-packages-"));
after(() => rmSync(home, { recursive: true }));

interface Packed {
  name: string;
  tarball: string;
  files: string[];
  manifest: any;
}

/** Packs a package as `npm publish` does, and installs the tarball. */
function pack(folder: string): Packed {
  const [{ filename, files }] = JSON.parse(execFileSync("npm", ["pack", "--json", "--pack-destination", home], { cwd: join(CLIENTS, folder), encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }));
  const manifest = JSON.parse(readFileSync(join(CLIENTS, folder, "package.json"), "utf8"));
  const target = join(home, "node_modules", manifest.name);
  mkdirSync(target, { recursive: true });
  execFileSync("tar", ["-xzf", join(home, filename), "-C", target, "--strip-components=1"]);
  return { name: manifest.name, tarball: join(home, filename), files: files.map(({ path }: any) => path), manifest };
}

const packages = ["typescript", "fastify", "chaos"].map(pack);
// The packages' dependencies.
for (const name of ["react", "@types/react", "csstype", "ws", "@types/ws", "@types/node", "undici-types", "fastify", "fastify-plugin", "@fastify/websocket"]) {
  const to = join(home, "node_modules", name);
  mkdirSync(dirname(to), { recursive: true });
  try {
    symlinkSync(join(CLIENTS, "node_modules", name), to);
  } catch {}
}

/** Returns the names of a package's entry points, such as `@mainstay/client`. */
const entriesOf = ({ name, manifest }: Packed) => Object.keys(manifest.exports).filter((path) => path !== "./package.json").map((path) => name + path.slice(1));
const entries = packages.flatMap(entriesOf);

for (const packed of packages) {
  test(`the tarball has licence files and metadata, and its README has no relative link: ${packed.name}`, () => {
    for (const file of ["LICENSE-MIT", "LICENSE-APACHE", "README.md", "package.json"]) assert.ok(packed.files.includes(file), file);
    assert.deepEqual(packed.files.filter((file) => /(^|\/)(test|node_modules)\/|build\.mjs|common\.mjs|tsconfig/.test(file)), []);
    for (const field of ["author", "homepage", "repository", "bugs", "license", "description", "keywords", "engines", "types"]) assert.ok(packed.manifest[field], field);
    // A scoped package is private unless `publishConfig` makes it public.
    assert.equal(packed.manifest.publishConfig.access, "public");
    for (const file of ["LICENSE-MIT", "LICENSE-APACHE"]) assert.equal(readFileSync(join(home, "node_modules", packed.name, file), "utf8"), readFileSync(join(CLIENTS, "..", file), "utf8"), file);
    const readme = readFileSync(join(home, "node_modules", packed.name, "README.md"), "utf8");
    assert.deepEqual(readme.match(/\]\((?!https:\/\/|#)[^)]*\)/g), null, "relative links");
  });

  test(`publint reports no problem: ${packed.name}`, async () => {
    const { messages } = await publint({ pkgDir: join(home, "node_modules", packed.name), strict: true, pack: false });
    assert.deepEqual(messages.map((message) => formatMessage(message, packed.manifest)), []);
  });

  test(`the types resolve in every module resolution: ${packed.name}`, async () => {
    const result = await checkPackage(createPackageFromTarballData(readFileSync(packed.tarball)));
    assert.ok(result.types);
    assert.deepEqual(result.problems, []);
  });
}

const USE = `
import { chaos, type Fault, type ChaosProxy } from "@mainstay/chaos";
import { MainstaySocket, type Fate, type Options, type SocketEvents, type WebSocketLike } from "@mainstay/client";
import { MainstaySocket as Plain } from "@mainstay/client/plain";
import { decode, type Frame } from "@mainstay/client/protocol";
import { sessionStorageStore } from "@mainstay/client/reload";
import { MainstaySocket as Mini, type Wx } from "@mainstay/client/wx";
import { useMainstay } from "@mainstay/client/react";
import { TestServer } from "@mainstay/client/testing";

declare const wx: Wx;
const options: Options = { credentials: "token", persist: sessionStorageStore(), greeting: async () => ["hello", new Uint8Array(1)], shouldReconnectOnClose: ({ code }) => code !== 4001 };
const socket = new MainstaySocket("wss://example.com", [], options);
const fateOf = (event: SocketEvents["gap"]): Fate | undefined => event.fate;
socket.addEventListener("gap", (event) => fateOf(event));
socket.addEventListener("message", (event) => console.log(event.data));
const frame: Frame = decode(new Uint8Array(1));
const proxy: Promise<ChaosProxy> = chaos({ upstream: "127.0.0.1:3000", faults: [{ kind: "status", code: 503, share: 0.5 }] });
const fault: Fault = { kind: "delay", latency: "250ms" };
void proxy.then((proxy) => proxy.inject({ ...fault, for: "8s" }));
new Plain("wss://example.com", "x", { WebSocket: new TestServer().WebSocket satisfies WebSocketLike });
new Mini("wss://example.com", [], { wx });
export { frame, useMainstay };
`;

const PLUGIN = `
import { mainstay } from "@mainstay/fastify";
import { connect } from "@mainstay/fastify/testing";
export { mainstay, connect };
`;

const compilers = [["TypeScript 5.4", require.resolve("typescript/bin/tsc")], ["TypeScript 7", join(CLIENTS, "node_modules/typescript/bin/tsc")]] as const;
for (const [name, tsc] of compilers) {
  for (const [resolution, module, extension] of [["node10", "commonjs", "ts"], ["node16", "node16", "cts"], ["nodenext", "nodenext", "mts"], ["bundler", "esnext", "ts"]] as const) {
    // Newer compilers have no `node10` resolution.
    if (name !== "TypeScript 5.4" && resolution === "node10") continue;
    test(`a strict project that checks the declarations compiles: ${name}, ${resolution}, .${extension}`, () => {
      const project = mkdtempSync(join(home, "use-"));
      const compilerOptions = { strict: true, noEmit: true, skipLibCheck: false, target: "es2022", lib: ["es2022", "esnext.disposable", "dom", "dom.iterable"], types: [], jsx: "react-jsx", module, moduleResolution: resolution };
      // React's types need a newer compiler.
      const use = resolution === "nodenext" ? USE + PLUGIN : USE;
      const text = name === "TypeScript 5.4" ? use.replace(/^import .*react.*$/m, "").replace(", useMainstay", "") : use;
      writeFileSync(join(project, `use.${extension}`), text);
      writeFileSync(join(project, "tsconfig.json"), JSON.stringify({ compilerOptions, files: [`use.${extension}`] }));
      try {
        execFileSync(process.execPath, [tsc, "--project", project], { encoding: "utf8" });
      } catch (error: any) {
        // Errors in the declarations of other packages do not count.
        const ours = error.stdout.split("\n").filter((line: string) => /^(\S*@mainstay\S*|use\.\w+)\(/.test(line));
        assert.deepEqual(ours, []);
      }
    });
  }
}

test("each entry point can be imported and required, in every Node that the packages support", () => {
  const run = (type: string, code: string) => execFileSync(process.execPath, [`--input-type=${type}`, "-e", code], { cwd: home, encoding: "utf8" });
  const imported = run("module", `for (const name of ${JSON.stringify(entries)}) console.log(name, Object.keys(await import(name)).sort().join());`);
  // `require` has to find the CommonJS file: Node cannot require an ES module before 20.19.
  const required = run("commonjs", `for (const name of ${JSON.stringify(entries)}) { if (!require.resolve(name).endsWith(".cjs")) throw name; console.log(name, Object.keys(require(name)).sort().join()); }`);
  assert.equal(required, imported);
  assert.match(imported, /@mainstay\/client MainstaySocket,/);
  assert.equal(run("commonjs", 'console.log(require("@mainstay/client").MainstaySocket.name)').trim(), "MainstaySocket");
});

test("two required entry points share their modules, so that a session persists over a reload", () => {
  const code = `
    const { MainstaySocket } = require("@mainstay/client");
    const { sessionStorageStore } = require("@mainstay/client/reload");
    globalThis.sessionStorage = { getItem: () => null, setItem() {}, removeItem() {} };
    globalThis.document = new EventTarget();
    const socket = new MainstaySocket("wss://example.com", [], { persist: sessionStorageStore(), WebSocket: require("ws").WebSocket, startClosed: true });
    socket.on("close", ({ code }) => console.log("closed", code));
    socket.close();`;
  assert.equal(execFileSync(process.execPath, ["--input-type=commonjs", "-e", code], { cwd: home, encoding: "utf8" }).trim(), "closed 1000");
});
