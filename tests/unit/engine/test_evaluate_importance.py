"""Importance as it is drawn: of every family, and equal to its definition."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foundry.engine.context import RunContext
from foundry.engine.corpus import pack
from foundry.engine.evaluate.answers import answer, prompts_of
from foundry.engine.evaluate.importance import gathered, importance
from foundry.engine.models import load_model
from foundry.intake.checkpoint import open_checkpoint
from foundry.intake.documents import Document
from foundry.spec.family import families
from tests import tiny
from tests.cutting import IDS, opened, packed
from tests.families import FAMILY_NAMES, MODELS_WITH_EXPERTS, genuine

TEXT = pack([Document(key=str(n), text=tiny.sentence(n, 30)) for n in range(3)], tiny.new_tokenizer(), 32)


def test_scores_equal_their_definitions(context: RunContext) -> None:
    model = tiny.new_model(layers=3)
    family = families()["llama"]
    shape = family.shape_of(model.config.to_dict())
    found = importance(model, family, shape, TEXT, context)
    inputs: list[torch.Tensor] = []
    down = model.model.layers[1].mlp.down_proj
    handle = down.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        states = model(**TEXT.batch(slice(None)).model_inputs(), output_hidden_states=True).hidden_states
    handle.remove()
    energy_C = inputs[0].square().sum(dim=(0, 1)) * down.weight.detach().square().sum(dim=0)
    score_C = energy_C.sqrt().sort(descending=True).values
    assert len(found["scores"]["ffn"][1]) == 48 and len(score_C) == 64
    assert found["scores"]["ffn"][1][0] == pytest.approx(float(score_C[:2].mean()), rel=1e-4)
    cosine = torch.cosine_similarity(states[1], states[2], dim=-1).mean()
    assert found["scores"]["layers"][1] == pytest.approx(1 - float(cosine), rel=1e-4)
    assert [len(heads) for heads in found["scores"]["heads"]] == [4, 4, 4]
    assert found["tokens"] == TEXT.ids_NS.numel()


def _rounded(scores: dict[str, Any]) -> list[float]:
    return [round(float(one), 4) for axis in ("layers", "heads", "ffn", "hidden") for one in np.ravel(scores[axis])]


def test_what_calibration_gathered_equals_a_pass_over_the_same_text(context: RunContext, tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "teacher", tiny.new_model(layers=3))
    cutting, checkpoint = opened(folder), open_checkpoint(folder)
    model = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    measured = importance(model, checkpoint.family, checkpoint.shape, packed(IDS), context)
    taken = gathered(cutting.statistics, checkpoint.shape)
    assert taken["tokens"] == measured["tokens"] == IDS.numel()
    assert _rounded(taken["scores"]) == pytest.approx(_rounded(measured["scores"]), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_every_family_can_be_drawn_and_asked(context: RunContext, name: str) -> None:
    model, family = genuine(name), families()[name]
    shape = family.shape_of(model.config.to_dict())
    found = importance(model, family, shape, TEXT, context)
    assert len(found["scores"]["layers"]) == shape.layers
    assert [len(heads) for heads in found["scores"]["heads"]] == [shape.heads] * shape.layers
    assert ("ffn" in found["scores"]) is (name not in MODELS_WITH_EXPERTS)
    prompts = prompts_of(
        [Document(key="a", text=tiny.sentence(1, 8)), Document(key="b", text=tiny.sentence(2, 20))],
        tiny.new_tokenizer(), 48, most=2,
    )  # fmt: skip
    assert len(answer(model, tiny.new_tokenizer(), prompts, 30, context)) == 2
