"""The shared library of llama.cpp that the xllamacpp wheel carries, reached by ctypes.

The wheel is one extension module that exports the whole C interface. It is all that quantising and opening a GGUF need:
no compiler, no second copy of llama.cpp. This file imports nothing heavy, because the process that measures a model's
memory starts from it.
"""

import ctypes
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from foundry.errors import MissingExtra


@cache
def shared_library() -> ctypes.CDLL:
    """llama.cpp and ggml; raises `MissingExtra` when xllamacpp is not installed."""
    spec = find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise MissingExtra("xllamacpp", "export")
    library = next(
        (p for p in Path(spec.origin).parent.glob("xllamacpp*") if p.suffix in (".so", ".pyd", ".dylib")), None
    )
    if library is None:
        raise MissingExtra("xllamacpp (its compiled part)", "export")
    return ctypes.CDLL(str(library))


def runtime_version() -> str:
    """What a variant's numbers were measured in, for example `xllamacpp 2026.10.11549`."""
    return f"xllamacpp {version('xllamacpp')}"
