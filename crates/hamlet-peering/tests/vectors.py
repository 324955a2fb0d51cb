"""Known answers for the peering exchange, computed from the specification's text with nothing but
Python's standard library, so that a mistake in the program isn't made twice.

Run it in this folder: python3 vectors.py > vectors.json
"""

import hashlib
import hmac
import json


def lp(part: bytes) -> bytes:
    return len(part).to_bytes(4, "big") + part


def hkdf_sha256(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    prk = hmac.new(salt, secret, hashlib.sha256).digest()
    out, block, count = b"", b"", 1
    while len(out) < length:
        block = hmac.new(prk, block + info + bytes([count]), hashlib.sha256).digest()
        out += block
        count += 1
    return out[:length]


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def vector(seed: int, document_a: bytes, document_b: bytes) -> dict:
    def some(label: str, length: int) -> bytes:
        return hashlib.shake_256(f"{seed} {label}".encode()).digest(length)

    invitation, secret = some("id", 16), some("secret", 32)
    exporter = some("exporter", 32)
    leaf_a, leaf_b = some("leaf a", 300), some("leaf b", 411)
    nonce_a, nonce_b = some("nonce a", 32), some("nonce b", 32)
    commitment = sha256(nonce_b)
    key = hkdf_sha256(secret, invitation, b"hamlet-peering-1 key", 32)
    parts = [
        b"hamlet-peering-1",
        invitation,
        exporter,
        sha256(leaf_a),
        sha256(leaf_b),
        commitment,
        nonce_a,
        nonce_b,
        document_a,
        document_b,
    ]
    transcript = sha256(b"".join(map(lp, parts)))
    bits = int.from_bytes(sha256(lp(b"hamlet-peering-1 words") + lp(transcript)), "big") >> (256 - 44)
    return {
        "id": invitation.hex(),
        "secret": secret.hex(),
        "exporter": exporter.hex(),
        "leaf_a": leaf_a.hex(),
        "leaf_b": leaf_b.hex(),
        "nonce_a": nonce_a.hex(),
        "nonce_b": nonce_b.hex(),
        "document_a": document_a.hex(),
        "document_b": document_b.hex(),
        "commitment": commitment.hex(),
        "key": key.hex(),
        "transcript": transcript.hex(),
        "mac_a": hmac.new(key, b"A" + transcript, hashlib.sha256).hexdigest(),
        "mac_b": hmac.new(key, b"B" + transcript, hashlib.sha256).hexdigest(),
        "words": [bits >> (11 * place) & 0x7FF for place in (3, 2, 1, 0)],
    }


print(
    json.dumps(
        [
            vector(1, b"", b""),
            vector(2, b"a document", b"another document"),
            vector(3, bytes(range(256)) * 3, b"\xff" * 1000),
        ],
        indent=1,
    )
)
