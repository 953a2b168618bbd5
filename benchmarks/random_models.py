"""Models and rows that need no file, and students that need no pruner, to measure on."""

import copy
import random
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from foundry.engine.packed import Packed

SHAPES: Mapping[str, Mapping[str, Any]] = {
    "llama-1b": {
        "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
    },
    "tiny": {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True,
    },
}  # fmt: skip
"""Teachers that need no file, by name: the shape of Llama 3.2 1B, and one for a try on a CPU."""


def half_the_layers(teacher: PreTrainedModel) -> PreTrainedModel:
    """A student that needs no pruner: every second layer of the teacher."""
    student = copy.deepcopy(teacher).float()
    student.model.layers = student.model.layers[::2]
    for place, layer in enumerate(student.model.layers):
        layer.self_attn.layer_idx = place
    student.config.num_hidden_layers = len(student.model.layers)
    return student


def wide_vocabulary(hidden: int, seed: int, vocabulary: int = 131_072) -> PreTrainedModel:
    """Two small random layers under a large head: nearly all of the work and memory is the loss."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
        tie_word_embeddings=True, initializer_range=0.1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def random_teacher(shape: str, device: torch.device, seed: int) -> PreTrainedModel:
    """A Llama of a shape in `SHAPES`, its random weights made on the device, rounded to bfloat16 on a GPU."""
    torch.manual_seed(seed)
    with device:
        model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=4096, **SHAPES[shape])).eval()
    return model.bfloat16() if device.type == "cuda" else model


def random_rows(vocabulary: int, rows: int, length: int, seed: int) -> Packed:
    """Rows of random tokens, each of two to four documents, whose last tokens predict nothing."""
    generator, choose = torch.Generator().manual_seed(seed), random.Random(seed)
    ids_NS = torch.randint(0, vocabulary, (rows, length), generator=generator, dtype=torch.int32)
    positions_NS = torch.zeros_like(ids_NS)
    targets_NS = torch.ones_like(ids_NS, dtype=torch.bool)
    for row in range(rows):
        starts = [0, *sorted(choose.sample(range(2, length - 1), choose.randint(1, 3))), length]
        for start, end in pairwise(starts):
            positions_NS[row, start:end] = torch.arange(end - start, dtype=torch.int32)
            targets_NS[row, end - 1] = False
    return Packed(ids_NS, positions_NS, targets_NS, bytes=1)
