/** Tokens that the npm package `jose` signs, at a real gateway: it fetches their keys, and clients renew them in band. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import http from "node:http";
import type net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { MainstaySocket, type Options } from "@mainstay/client";
import { exportJWK, generateKeyPair, type JWK, SignJWT } from "jose";
import { WebSocket as NodeSocket, WebSocketServer } from "ws";
import { serve, until } from "./support.js";

const WebSocket = NodeSocket as unknown as NonNullable<Options["WebSocket"]>;
const SECRET = "an example of 32 bytes, a secret";
const portOf = (server: { address(): unknown }) => (server.address() as net.AddressInfo).port;

const published: JWK[] = [];
let url: string;
const ends: (() => unknown)[] = [];
after(async () => {
  for (const end of ends.reverse()) await end();
});

before(async () => {
  const issuer = http.createServer((_request, response) => response.end(JSON.stringify({ keys: published })));
  await once(issuer.listen(0, "127.0.0.1"), "listening");
  const backend = new WebSocketServer({ port: 0, host: "127.0.0.1" });
  backend.on("connection", (peer) => peer.on("message", (data) => peer.send(String(data))));
  await once(backend, "listening");
  const folder = await mkdtemp(join(tmpdir(), "mainstay-jwt-"));
  await writeFile(join(folder, "secret"), SECRET);
  // A token of 2 s holds for 5 s, so that a busy machine presents none that has expired.
  const settings = `
listen = ["127.0.0.1:0"]
[routes.keys.upstream]
addresses = ["ws://127.0.0.1:${portOf(backend)}"]
[routes.keys.credentials]
grace = "4s"
[routes.keys.credentials.jwt]
jwks-url = "http://127.0.0.1:${portOf(issuer)}/"
leeway = "3s"
[routes.secret]
path = "/secret"
[routes.secret.upstream]
addresses = ["ws://127.0.0.1:${portOf(backend)}"]
[routes.secret.credentials.jwt]
keys-file = "${join(folder, "secret")}"
`;
  for (const algorithm of ["RS256", "ES256", "EdDSA"]) keys.set(algorithm, await newKey(algorithm, algorithm));
  keys.set("HS256", new TextEncoder().encode(SECRET));
  await writeFile(join(folder, "mainstay.toml"), settings);
  const gateway = await serve(["--config", join(folder, "mainstay.toml")]);
  url = `ws://127.0.0.1:${gateway.port}`;
  ends.push(() => rm(folder, { recursive: true }), () => issuer.close(), () => backend.close(), gateway.stop);
});

type Key = Parameters<SignJWT["sign"]>[0];
const keys = new Map<string, Key>();

/** Publishes a new key; returns its private part. */
async function newKey(algorithm: string, kid: string): Promise<Key> {
  const { publicKey, privateKey } = await generateKeyPair(algorithm, { extractable: true });
  published.push({ ...(await exportJWK(publicKey)), kid, alg: algorithm, use: "sig" });
  return privateKey;
}

function token(alg: string, key: Key = keys.get(alg)!, kid = alg): Promise<string> {
  return new SignJWT({}).setProtectedHeader({ alg, kid }).setSubject("alice").setIssuedAt().setExpirationTime("2s").sign(key);
}

/** Returns the status of an opening handshake with this token. */
async function opened(path: string, bearer: string): Promise<number> {
  const socket = new NodeSocket(url + path, { headers: { Authorization: `Bearer ${bearer}` } });
  const status = await new Promise<number>((resolve) => {
    socket.on("open", () => resolve(101));
    socket.on("unexpected-response", (_request, response) => resolve(response.statusCode!));
    socket.on("error", () => {});
  });
  socket.terminate();
  return status;
}

/** A client that sends numbers, and what came back. */
function counting(credentials: Options["credentials"]) {
  const socket = new MainstaySocket(`${url}/`, [], { WebSocket, credentials });
  const [received, statuses, sessions] = [[] as number[], new Set<string>(), [] as boolean[]];
  let sent = 0;
  socket.addEventListener("message", ({ data }) => received.push(Number(data)));
  socket.on("status", ({ status }) => statuses.add(status));
  socket.on("session", ({ resumed }) => sessions.push(resumed));
  const timer = setInterval(() => socket.send(String(sent++)), 20);
  ends.push(() => clearInterval(timer), () => socket.suspend());
  const stop = async () => {
    clearInterval(timer);
    await until(() => received.length === sent);
    socket.close();
    assert.deepEqual(received, Array.from({ length: sent }, (_, number) => number));
  };
  return { socket, statuses, sessions, stop };
}

test("tokens of every algorithm that jose signs are accepted, and by the right key alone", async () => {
  for (const algorithm of ["RS256", "ES256", "EdDSA"]) {
    assert.equal(await opened("/", await token(algorithm)), 101, algorithm);
    const { privateKey } = await generateKeyPair(algorithm);
    assert.equal(await opened("/", await token(algorithm, privateKey)), 401, algorithm);
  }
  assert.equal(await opened("/secret", await token("HS256")), 101);
  assert.equal(await opened("/", await token("HS256", keys.get("HS256"), "RS256")), 401, "its key is no secret");
});

test("clients that renew their token keep their session and lose nothing, and a new key of the issuer is accepted", async () => {
  let asked = 0;
  const asking = counting(async () => (asked++, token("ES256")));
  const renewing = counting(await token("EdDSA"));
  const verdicts: boolean[] = [];
  renewing.socket.on("authenticated", ({ accepted }) => verdicts.push(accepted));
  const renews = setInterval(async () => renewing.socket.authenticate(await token("EdDSA")), 1000);
  ends.push(() => clearInterval(renews));
  // The gateway asks at each expiry, and the client presents what the function returns then.
  await until(() => asked >= 3);
  await until(() => verdicts.length >= 9);
  clearInterval(renews);
  const rotated = await newKey("ES256", "rotated");
  assert.equal(await opened("/", await token("ES256", rotated, "rotated")), 101, "the keys are fetched at once");
  assert.equal(await opened("/", await token("ES256")), 101, "the key before is still in the set");
  await asking.stop();
  await renewing.stop();
  assert.ok(asking.sessions.length >= 3 && asking.sessions.slice(1).every((resumed) => resumed), String(asking.sessions));
  assert.deepEqual([renewing.sessions, new Set(verdicts)], [[false], new Set([true])], "in band, over one connection");
  for (const { statuses } of [asking, renewing]) assert.ok(!statuses.has("waiting"), [...statuses].join());
});

test("a client that keeps an expired token ends, and the application learns why", async () => {
  const socket = new MainstaySocket(`${url}/`, [], { WebSocket, credentials: await token("RS256") });
  const [closed] = (await once(socket as any, "close")) as [CloseEvent];
  assert.deepEqual([closed.code, socket.readyState], [4501, NodeSocket.CLOSED]);
});
