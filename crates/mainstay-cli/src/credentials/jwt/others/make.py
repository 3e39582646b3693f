# Makes keys, their JWKS and tokens by PyJWT:
#   pip install PyJWT==2.10.1 cryptography==50.0.2 && python make.py > pyjwt.json
import json

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import get_default_algorithms

SECRET = "an example of 32 bytes, a secret"
CLAIMS = {"sub": "alice", "iat": 1_700_000_000, "exp": 4_102_444_800, "roles": ["a", "b"]}
PRIVATE = {
    "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
keys, cases = [], []
for algorithm, private in PRIVATE.items():
    public, kid = private.public_key(), f"pyjwt-{algorithm}"
    keys.append({**get_default_algorithms()[algorithm].to_jwk(public, as_dict=True), "kid": kid})
    cases.append({
        "algorithm": algorithm,
        "pem": public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
        "token": jwt.encode(CLAIMS, private, algorithm, headers={"kid": kid}),
        "unnamed": jwt.encode(CLAIMS, private, algorithm),
    })
cases.append({
    "algorithm": "HS256",
    "pem": SECRET,
    "token": jwt.encode(CLAIMS, SECRET, "HS256", headers={"kid": "any"}),
    "unnamed": jwt.encode(CLAIMS, SECRET, "HS256"),
})
print(json.dumps({"jwks": {"keys": keys}, "cases": cases}, indent=1))
