"""Torch-Pruning (PyPI: torch-pruning) on the same teacher, used as its example for language models uses it.

Query, key and value projections lose whole heads together, the head on top is no root, hidden is rounded to 4. The
library keeps no tie between embedding and head, so it gets a model whose head is a copy; it cuts both alike.
"""

import copy
import warnings
from collections.abc import Iterator
from itertools import islice

import torch
import torch_pruning as tp
from torch import nn
from transformers import PreTrainedModel

from benchmarks.cuts import Bench, Record
from foundry.spec.weights import Shape

_ROUND_TO = 4
_STEPS = 7
"""Of the search for the uniform ratio."""
_GRADIENT_TOKENS = 16_384
"""Calibration text that the gradients of group Taylor come from; its example reads far less."""


class TorchPruning:
    """Its two importances, each at the better of two kinds of shape: its own uniform one and those of our grid."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.model = copy.deepcopy(bench.teacher).cpu()
        if self.model.config.tie_word_embeddings:
            self.model.config.tie_word_embeddings = False
            self.model.lm_head.weight = nn.Parameter(self.model.lm_head.weight.detach().clone())
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        self.gradients = self._gradients()

    def _gradients(self) -> dict[str, torch.Tensor]:
        """Of the loss over the first part of the calibration text."""
        rows = max(1, 2048 // self.bench.text.sequence_tokens)
        for batch in islice(self.bench.text.batches(rows), max(1, _GRADIENT_TOKENS // 2048)):
            logits = self.model(**batch.model_inputs()).logits[batch.targets_BS]
            loss = nn.functional.cross_entropy(logits, batch.labels_BS[batch.targets_BS], reduction="sum")
            torch.autograd.backward(loss / self.bench.text.counted_tokens)
        found = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad(set_to_none=True)
        return found

    def measured(self, gone: float) -> Iterator[Record]:
        for name, importance in {
            "group Taylor": tp.importance.GroupTaylorImportance(),
            "group magnitude": tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean"),
        }.items():
            yield self._best(f"Torch-Pruning, {name}", gone, importance)

    def _best(self, method: str, gone: float, importance: tp.importance.Importance) -> Record:
        bench = self.bench
        candidates = [self._uniform(gone, importance)]
        whole_depth = [shape for shape in bench.shapes(gone) if shape.layers == bench.shape.layers]
        if whole_depth:
            limit = max(2, bench.candidates // 2)
            shape = bench.choose(whole_depth, lambda shape: self._cut(*self._shares(shape), importance), limit)
            candidates.append(self._cut(*self._shares(shape), importance))
        fitting = [model for model in candidates if without_embedding(model) <= bench.budget(gone)]
        best = min(fitting or candidates, key=bench.kl)
        increase = bench.loss(best) - bench.base
        return Record(
            method=method, gone=gone, shape=_said(best), parameters=without_embedding(best), increase=increase
        )

    def _shares(self, shape: Shape) -> tuple[float, float, float]:
        """Of hidden, ffn and heads. A hair less than what goes: the library rounds what stays down."""
        whole = self.bench.shape
        kept = shape.hidden / whole.hidden, shape.ffn / whole.ffn, shape.heads / whole.heads
        hidden, ffn, heads = (max(0.0, 1 - share - 1e-6) for share in kept)
        return hidden, ffn, heads

    def _uniform(self, gone: float, importance: tp.importance.Importance) -> PreTrainedModel:
        """One ratio for hidden, ffn and heads, as in the example: the smallest that meets the budget."""
        low, high = 0.0, 0.9
        best = self._cut(high, high, high, importance)
        for _ in range(_STEPS):
            middle = (low + high) / 2
            model = self._cut(middle, middle, middle, importance)
            if without_embedding(model) > self.bench.budget(gone):
                low = middle
            else:
                high, best = middle, model
        return best

    def _cut(self, hidden: float, ffn: float, heads: float, importance: tp.importance.Importance) -> PreTrainedModel:
        """A copy with these shares of its axes gone."""
        model: PreTrainedModel = copy.deepcopy(self.model)
        for name, parameter in model.named_parameters():
            parameter.grad = self.gradients[name].clone()
        config = model.config
        num_heads: dict[nn.Module, int] = {}
        shares: dict[nn.Module, float] = {}
        for layer in model.model.layers:
            attention = layer.self_attn
            num_heads[attention.q_proj] = config.num_attention_heads
            num_heads[attention.k_proj] = num_heads[attention.v_proj] = config.num_key_value_heads
            shares |= {layer.mlp.gate_proj: ffn, layer.mlp.up_proj: ffn}
            # Without a share of their own, projections lose no heads where hidden stays whole.
            shares |= dict.fromkeys((attention.q_proj, attention.k_proj, attention.v_proj), heads)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner = tp.pruner.BasePruner(
                model, example_inputs=torch.arange(8)[None], forward_fn=_logits, importance=importance,
                pruning_ratio=hidden, pruning_ratio_dict=shares, ignored_layers=[model.lm_head],
                num_heads=num_heads, prune_num_heads=True, prune_head_dims=False, head_pruning_ratio=heads,
                round_to=_ROUND_TO,
            )  # fmt: skip
            pruner.step()
        for layer in model.model.layers:
            attention = layer.self_attn
            kv_heads = attention.k_proj.out_features // attention.head_dim
            attention.num_key_value_groups = attention.q_proj.out_features // attention.head_dim // kv_heads
        model.zero_grad(set_to_none=True)
        return model.requires_grad_(False).to(self.bench.context.device).eval()


def _logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def without_embedding(model: PreTrainedModel) -> int:
    """Counted from the tensors themselves."""
    ends = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in ends)


def _said(model: PreTrainedModel) -> str:
    layers = model.model.layers
    attention, mlp = layers[0].self_attn, layers[0].mlp
    heads = attention.q_proj.out_features // attention.head_dim
    return f"{len(layers)} layers, hidden {model.lm_head.in_features}, ffn {mlp.gate_proj.out_features}, heads {heads}"
