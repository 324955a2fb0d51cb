"""Recomputes digest_*.hex from the formats documented in ../digest.rs, with nothing of ours."""
import hashlib, struct, pathlib

def lp(x): return struct.pack(">Q", len(x)) + x
def sha(x): return hashlib.sha256(x).digest()

def root(type_url, entries):
    t = type_url.encode()
    buckets = {}
    for k, v in entries.items():
        kh = sha(b"hamlet/key/1" + k.encode())
        leaf = sha(b"hamlet/leaf/1" + lp(t) + lp(k.encode()) + lp(v.encode()))
        buckets.setdefault(int.from_bytes(kh[:2], "big") >> 1, []).append(kh + leaf)
    zero = bytes(32)
    level = [zero] * 32768
    for b, es in buckets.items():
        level[b] = sha(struct.pack(">I", len(es)) + b"".join(sorted(es)))
    while len(level) > 1:
        groups = [level[i:i + 32] for i in range(0, len(level), 32)]
        level = [zero if all(c == zero for c in g) else sha(b"".join(g)) for g in groups]
    return sha(b"hamlet/root/1" + lp(t) + struct.pack(">Q", len(entries)) + level[0]).hex()

here = pathlib.Path(__file__).parent
(here / "digest_empty.hex").write_text(root("t", {}) + "\n")
(here / "digest_300.hex").write_text(root("type.example/t", {f"svc-{i}": f"value {i}" for i in range(300)}) + "\n")
