"""Writes a LoRA adapter as llama.cpp reads it: `llama-server --lora`, `foundry serve --adapter`.

Such a file holds the two factors of every adapted matrix under llama.cpp's name for it. Whatever is done to the rows of
a matrix on its way into a GGUF (rotary pairs, fused heads) is done to the rows of the second factor.

r: rank of the adapter.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import gguf
import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from foundry.engine.export.gguf import rows_for_llamacpp
from foundry.engine.workspace import read_json, sync
from foundry.errors import ExportFailed
from foundry.intake.checkpoint import Checkpoint
from foundry.spec.weights import Weight

_PREFIX = "base_model.model."


def write_adapter(base: Checkpoint, folder: Path, path: Path) -> None:
    """Write the adapter that PEFT saved in `folder` for a base model as one GGUF, in float32.

    Raises `ExportFailed` for a kind of adapter that llama.cpp does not compute.
    """
    settings = read_json(folder / "adapter_config.json")
    for key in ("use_dora", "use_rslora", "modules_to_save", "alpha_pattern", "rank_pattern"):
        if settings.get(key):
            raise ExportFailed(f"adapter_config.json: {key} is set; llama.cpp computes plain LoRA alone")
    writer = gguf.GGUFWriter(path, base.family.gguf_architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(settings["lora_alpha"]))
    for name, value in _factors(load_file(folder / "adapter_model.safetensors"), base):
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    sync(path)


def _factors(saved: Mapping[str, Tensor], base: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    """A [r, in] and B [out, r] of every adapted matrix."""
    left = dict(saved)
    for weight, layer, module in _matrices(base):
        first, second = (left.pop(f"{_PREFIX}{module}.lora_{factor}.weight", None) for factor in "AB")
        if first is None or second is None:
            continue
        name = weight.gguf.format(layer=layer)
        yield f"{name}.lora_a", first.float().contiguous().numpy()
        yield f"{name}.lora_b", rows_for_llamacpp(second.float(), weight, base).contiguous().numpy()
    if left:
        raise ExportFailed(f"the adapter changes {sorted(left)[0]}, for which llama.cpp has no place")


def _matrices(base: Checkpoint) -> Iterator[tuple[Weight, int, str]]:
    """Every matrix with inputs and outputs, its layer, and the module that holds it."""
    for tensor in base.family.tensors(base.shape, base.present):
        if tensor.weight.input_axis is not None and not tensor.weight.per_expert:
            yield tensor.weight, tensor.layer, base.family.module_of(tensor.weight, tensor.layer)
