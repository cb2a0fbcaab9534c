"""placeholder until the branches meet"""
import hashlib


def is_held_out(seed: int, every: int) -> bool:
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "big") % every == 0
