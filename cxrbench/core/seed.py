"""Seeds as hashes of names, so that adding a part never changes another part's randomness."""

import hashlib


def derive_seed(root: int, *names: object) -> int:
    """A 63-bit seed that is a pure function of a root seed and the names of a part."""
    text = "\x1f".join([str(root), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
