// Makes keys, their JWKS and tokens by the npm package `jose`:
//   npm install jose@6.2.18 && node make.mjs > jose.json
import { SignJWT, exportJWK, exportSPKI, generateKeyPair } from "jose";

const secret = "an example of 32 bytes, a secret";
const claims = { sub: "alice", iat: 1_700_000_000, exp: 4_102_444_800, roles: ["a", "b"] };
const keys = [];
const cases = [];

async function sign(algorithm, key, kid) {
  return new SignJWT(claims).setProtectedHeader({ alg: algorithm, typ: "JWT", ...(kid && { kid }) }).sign(key);
}

for (const algorithm of ["RS256", "ES256", "EdDSA"]) {
  const { publicKey, privateKey } = await generateKeyPair(algorithm, { extractable: true });
  const kid = `jose-${algorithm}`;
  keys.push({ ...(await exportJWK(publicKey)), kid, alg: algorithm, use: "sig" });
  const [token, unnamed] = [await sign(algorithm, privateKey, kid), await sign(algorithm, privateKey)];
  cases.push({ algorithm, pem: await exportSPKI(publicKey), token, unnamed });
}
const bytes = new TextEncoder().encode(secret);
cases.push({ algorithm: "HS256", pem: secret, token: await sign("HS256", bytes, "any"), unnamed: await sign("HS256", bytes) });
console.log(JSON.stringify({ jwks: { keys }, cases }, null, 1));
