"""Which families ONNX Runtime runs as transformers does: `python -m benchmarks.onnx_families [FAMILY ...]`.

A genuine tiny model of every family, written by the exporter in float32 and in 4 bits, opened in ONNX Runtime in a
process of its own, and scored on 60 tokens against transformers. The ONNX column of docs/support.md comes from here.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from foundry.engine.export import plain
from foundry.engine.export.apart import ONNX, ask
from foundry.engine.export.onnx import write_onnx
from foundry.engine.export.runtime import Questions
from foundry.errors import ExportFailed
from foundry.intake.checkpoint import open_checkpoint
from tests.families import FAMILY_NAMES, VOCABULARY, genuine
from tests.tiny import CONTEXT, new_tokenizer

_TOKENS = 60
_SAME_NATS = 0.05
_ANY: dict[str, object] = {"hidden": 64, "head_dim": 16}
"""Heads of 16: the runtime's attention takes no smaller ones."""
_SHAPE: dict[str, dict[str, object]] = {"gpt2": {"hidden": 64}, "gpt_neox": {"hidden": 64}}
_NEEDED: dict[str, dict[str, object]] = {
    "gemma3": {"layers": 7}, "olmo3": {"layers": 5}, "qwen3_moe": {"norm_topk_prob": True}, "smollm3": {"layers": 5},
}  # fmt: skip
"""What shows the features of a family: the sixth layer of Gemma 3 attends to everything, the fourth of SmolLM3 does
not turn."""


def tried(name: str, folder: Path) -> str:
    """One line of the table."""
    passage = np.random.default_rng(0).integers(1, VOCABULARY, _TOKENS).tolist()
    model = genuine(name, **_SHAPE.get(name, _ANY), **_NEEDED.get(name, {})).bfloat16()  # type: ignore[arg-type]
    model.save_pretrained(folder / "model")
    new_tokenizer().save_pretrained(folder / "model")
    opened = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    expected, _ = plain.score(opened, passage)
    said = []
    for quantisation in ("fp32", "int4"):
        try:
            write_onnx(open_checkpoint(folder / "model"), folder / quantisation, quantisation=quantisation)
            questions = Questions(model=str(folder / quantisation), context_tokens=CONTEXT, passages=[passage])
            found = ask(ONNX, questions).losses[0]
        except ExportFailed as error:
            said.append(f"{quantisation} no: {error.message[:400]}")
            break
        worst, mean = np.abs(np.subtract(found, expected)).max(), np.mean(found) - np.mean(expected)
        verdict = "yes" if worst < _SAME_NATS or quantisation != "fp32" else "no, differs"
        said.append(f"{quantisation} {verdict}: largest difference {worst:.4f} nats, mean {mean:+.4f}")
    return "; ".join(said)


def main() -> None:
    """Print one line a family."""
    torch.set_num_threads(1)
    for name in sys.argv[1:] or FAMILY_NAMES:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{name}: {tried(name, Path(folder))}", flush=True)


if __name__ == "__main__":
    main()
