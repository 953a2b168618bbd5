"""Writes an importance matrix as llama.cpp keeps it: `llama-quantize --imatrix` reads the file."""

from pathlib import Path

import gguf
import numpy as np

from foundry.engine.export.activations import Activations
from foundry.engine.export.gguf import stored
from foundry.intake.checkpoint import Checkpoint


def write_imatrix(
    activations: Activations, checkpoint: Checkpoint, path: Path, *, data: str, chunk_tokens: int
) -> None:
    """By the names of llama.cpp's tensors: the sum of squares of each column, and over how many tokens.

    The experts of a layer are one tensor there; one that no token reached has a count of zero.
    """
    writer = gguf.GGUFWriter(path, checkpoint.family.gguf_architecture)
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [data])
    tokens = max((heard.tokens for heard in activations.values()), default=0)
    writer.add_uint32("imatrix.chunk_count", -(-tokens // chunk_tokens))
    writer.add_uint32("imatrix.chunk_size", chunk_tokens)
    for name, tensors in stored(checkpoint):
        heard = [activations.get(tensor.name) for tensor in tensors]
        if any(one is not None for one in heard):
            columns = next(len(one.squares_C) for one in heard if one is not None)
            rows = [one.squares_C.numpy() if one is not None else np.zeros(columns, np.float32) for one in heard]
            counts = [[one.tokens if one is not None else 0] for one in heard]
            writer.add_tensor(f"{name}.in_sum2", np.stack(rows))
            writer.add_tensor(f"{name}.counts", np.array(counts, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
