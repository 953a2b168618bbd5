"""Genuine tiny models of every family, made by transformers' own classes; norms and biases are random too."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from foundry.spec.family import families
from tests.tiny import CONTEXT, new_tokenizer

VOCABULARY = 320
HEAD_DIM = 8
EXPERTS = 4
EXPERT_FFN = 32

_MODEL_TYPES = {"gemma3": "gemma3_text"}
"""Family -> model_type, where they differ."""
UNGROUPED = ("gpt2", "gpt_neox")
"""Families in which every head has its own keys and values, and head_dim is hidden / heads."""
_YARN = {
    "type": "yarn", "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16,
    "max_position_embeddings": CONTEXT, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}  # fmt: skip
"""Ministral 3's own settings, at the size of a tiny context."""
_MORE: dict[str, dict[str, Any]] = {
    "cwm": {"sliding_window": 16},
    "gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 16},
    "gemma3": {"sliding_window": 16, "query_pre_attn_scalar": 16},
    "exaone4": {"sliding_window": None},
    "glm": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    "glm4": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    "granite": {
        "embedding_multiplier": 1.5, "logits_scaling": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.25,
    },
    "ministral": {"sliding_window": 16},
    "ministral3": {"rope_parameters": _YARN},
    "olmo3": {"sliding_window": 16},
    "vaultgemma": {"sliding_window": 16, "query_pre_attn_scalar": 16},
}  # fmt: skip
"""Settings that make a tiny model of a family differ from its neighbours in what it computes."""
NEEDED: dict[str, dict[str, Any]] = {
    "gemma3": {"layers": 7},  # the sixth attends to everything
    "olmo3": {"layers": 5},
    "olmoe": {"kv_heads": None},  # llama.cpp's norm of keys is as long as that of queries
    "qwen3_moe": {"norm_topk_prob": True},
    "smollm3": {"layers": 5},  # the fourth does not turn
}
"""What shows the features of a family: the layers of another kind, and settings that its published models have."""
FAMILY_NAMES = tuple(families())
"""Every table there is: one more is one more file and no change here, unless its config has sizes of its own."""
MODELS_WITH_EXPERTS = ("mixtral", "olmoe", "qwen3_moe")
"""Families whose feed-forward networks are experts."""
TIED_ONLY = ("gpt2",)
"""Families whose tables know no output matrix of its own."""


def genuine(
    name: str, *, hidden: int = 32, ffn: int | None = None, layers: int = 2, heads: int = 4,
    kv_heads: int | None = None, tied: bool | None = None, seed: int = 0, **more: Any,
) -> PreTrainedModel:  # fmt: skip
    """A model of a family with float32 weights that depend on the seed alone; its class's own tying when not told."""
    filled = families()[name].heads_fill_hidden
    ffn = ffn or (EXPERT_FFN if name in MODELS_WITH_EXPERTS else 64)
    settings: dict[str, Any] = {"vocab_size": VOCABULARY, "initializer_range": 0.2, "pad_token_id": None}
    settings |= {"bos_token_id": 0, "eos_token_id": 0}
    if name == "gpt2":
        settings |= {"n_embd": hidden, "n_inner": ffn, "n_layer": layers, "n_head": heads, "n_positions": CONTEXT}
        settings |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    else:
        settings |= {
            "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
            "max_position_embeddings": CONTEXT,
        }  # fmt: skip
    if name not in UNGROUPED:
        settings |= {"num_key_value_heads": kv_heads or (heads if filled else max(1, heads // 2))}
    if not filled or name == "helium":  # its class has a head_dim, and takes one value
        settings |= {"head_dim": hidden // heads if filled else HEAD_DIM}
    if name == "mixtral":
        settings |= {"num_local_experts": EXPERTS, "num_experts_per_tok": 2}
    if name == "exaone4":  # its class cannot make the list itself where there is no window
        settings |= {"layer_types": ["full_attention"] * layers}
    if name in ("olmoe", "qwen3_moe"):
        settings |= {"num_experts": EXPERTS, "num_experts_per_tok": 2}
    if name == "qwen3_moe":
        settings |= {"moe_intermediate_size": ffn}
    if tied is not None:
        settings["tie_word_embeddings"] = tied
    # A copy: config classes fill in what they are given.
    settings = deepcopy(settings | _MORE.get(name, {}) | more)
    config = AutoConfig.for_model(_MODEL_TYPES.get(name, name), **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).float().eval()
        _shake(model, families()[name].norm_offset)
    return model


def save_genuine(folder: Path, name: str, **changes: Any) -> PreTrainedModel:
    """Write a model of a family and a tokenizer as a hub folder; give back the model."""
    model = genuine(name, **changes)
    model.save_pretrained(folder)
    new_tokenizer().save_pretrained(folder)
    return model


@torch.no_grad()
def _shake(model: nn.Module, offset: float) -> None:
    """Move norms away from one and biases away from zero: what is lost or misplaced then shows in the outputs."""
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.normal_(0.0, 0.1)
        elif parameter.ndim == 1:
            parameter.uniform_(0.5 - offset, 1.5 - offset)
