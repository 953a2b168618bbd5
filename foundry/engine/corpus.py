import hashlib


def is_held_out(key: str, share: float = 0.05) -> bool:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") < share * 2**64
