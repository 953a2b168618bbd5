"""Names of objects: a prefix that says what it is, and 24 characters that sort by the time they were made."""

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32: digits before letters in every collation, nothing that is read as something else."""
_TIME_BITS, _RANDOM_BITS = 52, 68


def new_id(prefix: str) -> str:
    """For example `job_05rz3k...`: 52 bits of microseconds since 1970, then 68 random bits."""
    microseconds = time.time_ns() // 1000
    number = (microseconds << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS)
    characters = (_ALPHABET[(number >> shift) & 31] for shift in range(_TIME_BITS + _RANDOM_BITS - 5, -1, -5))
    return f"{prefix}_{''.join(characters)}"
