"""Genuine tiny students: teachers of every family that lost a part of every axis."""

import random
from pathlib import Path

import torch

from foundry.engine.models import copy_tokenizer
from foundry.engine.prune.slicer import Slicer
from foundry.engine.tensors import write_sharded
from foundry.engine.workspace import write_json
from foundry.intake.checkpoint import Checkpoint, open_checkpoint
from foundry.spec.family import families
from foundry.spec.variant import PrunePlan
from tests.families import HEAD_DIM, NEEDED, genuine
from tests.tiny import new_tokenizer


def cut(name: str, folder: Path, head_dim: int = HEAD_DIM) -> Checkpoint:
    """What is left of a teacher when every axis that it has is cut, written to `folder/model` as a job does.

    Half of hidden, ffn and heads, a layer and an expert less. The teacher with eight heads lies in `folder/teacher`.
    """
    filled = families()[name].heads_fill_hidden
    in_step = families()[name].gguf_heads_fill_hidden or filled
    changes = {"hidden": (8 if in_step else 12) * head_dim, "heads": 8, "kv_heads": 2, "layers": 3}
    changes |= NEEDED.get(name, {})
    if not filled:
        changes["head_dim"] = head_dim
    model = genuine(name, **changes).bfloat16()
    model.save_pretrained(folder / "teacher")
    new_tokenizer().save_pretrained(folder / "teacher")
    teacher = open_checkpoint(folder / "teacher")
    whole, choose = teacher.shape, random.Random(0)
    group = whole.heads // whole.kv_heads
    shape = whole.model_copy(
        update={
            "hidden": whole.hidden // 2, "ffn": whole.ffn // 2, "heads": whole.heads // 2, "layers": whole.layers - 1,
            "kv_heads": whole.kv_heads if group > 1 else whole.kv_heads // 2,
            "experts": max(0, whole.experts - 1),
        }
    )  # fmt: skip

    def some(count: int, of: int) -> tuple[int, ...]:
        return tuple(sorted(choose.sample(range(of), count)))

    heads = some(shape.heads, whole.heads)
    if group > 1:
        of_each = shape.heads // shape.kv_heads
        heads = tuple(group * g + h for g in range(whole.kv_heads) for h in some(of_each, group))
    plan = PrunePlan(
        family=name, target="kiosk", teacher_shape=whole, shape=shape, layers=tuple(range(shape.layers)),
        hidden=some(shape.hidden, whole.hidden), heads=(heads,) * shape.layers,
        kv_heads=(heads,) * shape.layers if group == 1 else (),
        ffn=tuple(some(shape.ffn, whole.ffn) for _ in range(shape.layers * max(1, shape.experts))),
        experts=tuple(some(shape.experts, whole.experts) for _ in range(shape.layers)) if shape.experts else (),
    )  # fmt: skip
    slicer = Slicer(checkpoint=teacher, plan=plan, statistics=None, device=torch.device("cpu"))
    (folder / "model").mkdir()
    copy_tokenizer(folder / "teacher", folder / "model")
    write_sharded(slicer.tensors(), slicer.entries(), folder / "model")
    write_json(folder / "model" / "config.json", slicer.config())
    return open_checkpoint(folder / "model")
