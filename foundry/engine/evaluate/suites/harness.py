"""A model of ours as the harness asks it, so that a run can be stopped between two batches."""

import sys
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foundry.engine.context import RunContext

_BATCH_TOKENS = 16_384
_MOST_ROWS = 16


def unseen() -> bool:
    """Whether nobody can see a bar move: in a worker it would push out the lines that say why a run has failed."""
    return not sys.stderr.isatty()


class HarnessModel(HFLM):  # type: ignore[misc]  # the harness has no types
    """The harness's own class for transformers; the answers are its own."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: RunContext) -> None:
        limit = int(getattr(model.config, "max_position_embeddings", None) or 2048)
        rows = max(1, min(_MOST_ROWS, _BATCH_TOKENS // limit))
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=rows, backend="causal")
        self._run = context

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm or unseen())

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm or unseen())

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
        return super().generate_until(requests, disable_tqdm=disable_tqdm or unseen())

    def _model_call(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._stop_when_asked()
        logits: torch.Tensor = super()._model_call(*args, **kwargs)
        return logits

    def _model_generate(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._stop_when_asked()
        made: torch.Tensor = super()._model_generate(*args, **kwargs)
        return made

    def _stop_when_asked(self) -> None:
        self._run.heed()
