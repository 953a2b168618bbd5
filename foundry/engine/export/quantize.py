"""Rows of numbers as the bytes of a GGUF tensor. llama.cpp's own quantiser does the work.

Its entry for whole files is not among the symbols that the wheel exports; the one for rows is, and takes an importance
matrix: docs/decisions/0017-importance-matrix.md.

R: rows, C: values of a row.
"""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import gguf
import numpy as np
import torch

from foundry.engine.export.library import shared_library
from foundry.errors import ExportFailed
from foundry.spec.formats import GgufType, bytes_of

_BLOCK_VALUES = 2**22
"""Numbers quantised by one call: 16 MB of float32, so that a large matrix is never held in float32 whole."""
_LEAST_WEIGHT = 1e-4
"""Of the mean weight of a tensor."""
_F16_MAX = float(np.finfo(np.float16).max)


def quantize(rows_RC: torch.Tensor, kind: GgufType, squares_C: torch.Tensor | None = None) -> np.ndarray:
    """The bytes of a tensor [R, C] or [C] as `kind`, as uint8 [R, bytes of a row].

    `squares_C` is the mean square of what each column is multiplied by; errors are weighed with it. The conversion to
    float32 happens block by block, on as many threads as torch uses; the quantiser itself releases the interpreter.
    Raises `ExportFailed` for values that the type cannot hold.
    """
    rows_RC = rows_RC.reshape(-1, rows_RC.shape[-1])
    count, length = rows_RC.shape
    out = np.empty((count, bytes_of(length, kind)), dtype=np.uint8)
    step = max(1, _BLOCK_VALUES // length)
    weights_C = None if squares_C is None else _weights(squares_C, length)

    def convert(start: int) -> None:
        block_RC = rows_RC[start : start + step].float().contiguous().numpy()
        _check_range(block_RC, kind)
        out[start : start + step] = _convert(block_RC, kind, weights_C)

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(convert, range(0, count, step)))
    return out


def _weights(squares_C: torch.Tensor, length: int) -> np.ndarray:
    """The importance matrix of one tensor. A column that was always zero keeps a little weight: it may not stay so."""
    found = np.ascontiguousarray(squares_C.float().numpy())
    if len(found) != length or not np.isfinite(found).all():
        raise ExportFailed(f"an importance matrix of {len(found)} columns does not fit a tensor of {length}")
    least = float(found.mean()) * _LEAST_WEIGHT or 1.0
    weights_C: np.ndarray = np.maximum(found, np.float32(least))
    return weights_C


def _convert(block_RC: np.ndarray, kind: GgufType, weights_C: np.ndarray | None) -> np.ndarray:
    if kind == "F32":
        return block_RC.view(np.uint8)
    if kind == "F16":
        return block_RC.astype(np.float16).view(np.uint8)
    count, length = block_RC.shape
    out = np.empty((count, bytes_of(length, kind)), dtype=np.uint8)
    written = _quantize_chunk()(
        _number_of(kind), block_RC.ctypes.data, out.ctypes.data, 0, count, length,
        None if weights_C is None else weights_C.ctypes.data,
    )  # fmt: skip
    if written != out.nbytes:
        raise ExportFailed(f"llama.cpp wrote {written} bytes of {kind} where {out.nbytes} were expected")
    return out


def _check_range(block_RC: np.ndarray, kind: GgufType) -> None:
    largest = float(np.abs(block_RC).max(initial=0))
    if not np.isfinite(largest):
        raise ExportFailed("a weight is not a finite number; the model is damaged or diverged in training")
    # Scales of the quantised types are f16 too, and at most as large as the largest value.
    if kind != "F32" and largest > _F16_MAX:
        raise ExportFailed(
            f"a weight of {largest:g} does not fit into f16 ({_F16_MAX:g} at most); ship safetensors instead"
        )


@cache
def _number_of(kind: GgufType) -> int:
    """ggml's number of a type, checked against the library's own name for it."""
    number = int(gguf.GGMLQuantizationType[kind])
    library = shared_library()
    library.ggml_type_name.restype = ctypes.c_char_p
    library.ggml_type_name.argtypes = [ctypes.c_int]
    name = library.ggml_type_name(number).decode()
    if name.lower() != kind.lower():
        raise ExportFailed(
            f"the gguf package and xllamacpp disagree on type {number}: {kind} and {name}; install matching versions"
        )
    return number


@cache
def _quantize_chunk():  # type: ignore[no-untyped-def]
    """`size_t ggml_quantize_chunk(type, src, dst, start, nrows, n_per_row, imatrix)`."""
    function = shared_library().ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    return function
