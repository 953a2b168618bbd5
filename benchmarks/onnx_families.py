"""Which families ONNX Runtime runs as transformers does: `python -m benchmarks.onnx_families [FAMILY ...]`.

A genuine tiny model of every family is cut along every axis, written by the exporter in float32 and in 4 bits, opened
in ONNX Runtime in a process of its own, scored on 60 tokens and continued, against transformers. The ONNX column of
docs/support.md comes from here.
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
from tests.families import FAMILY_NAMES, VOCABULARY
from tests.students import cut
from tests.tiny import CONTEXT

_TOKENS = 60
_SAME_NATS = 0.05
_HEAD_DIM = 16
"""The runtime's attention takes no smaller heads."""
_PROMPT_TOKENS, _CONTINUED_TOKENS = 24, 8


def tried(name: str, folder: Path) -> str:
    """One line of the table."""
    passage = np.random.default_rng(0).integers(1, VOCABULARY, _TOKENS).tolist()
    student = cut(name, folder, _HEAD_DIM)
    opened = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    expected, _ = plain.score(opened, passage)
    prompt = passage[:_PROMPT_TOKENS]
    theirs = plain.greedy(opened, prompt, _CONTINUED_TOKENS)
    said = []
    for quantisation in ("fp32", "int4"):
        try:
            write_onnx(student, folder / quantisation, quantisation=quantisation)
            answers = ask(
                ONNX,
                Questions(
                    model=str(folder / quantisation), context_tokens=CONTEXT, passages=[passage], prompts=[prompt],
                    continue_tokens=_CONTINUED_TOKENS,
                ),
            )  # fmt: skip
        except ExportFailed as error:
            said.append(f"{quantisation} no: {error.message[:400]}")
            break
        differences = np.subtract(answers.losses[0], expected)
        worst, mean = np.abs(differences).max(), differences.mean()
        pairs = zip(answers.continuations[0].tokens, theirs.tokens, strict=True)
        equal = next((i for i, (mine, other) in enumerate(pairs) if mine != other), _CONTINUED_TOKENS)
        verdict = "yes" if worst < _SAME_NATS or quantisation != "fp32" else "no, differs"
        said.append(
            f"{quantisation} {verdict}: largest difference {worst:.4f} nats, mean {mean:+.4f}, "
            f"{equal} of {_CONTINUED_TOKENS} greedy tokens equal"
        )
    return "; ".join(said)


def main() -> None:
    """Print one line a family."""
    torch.set_num_threads(1)
    for name in sys.argv[1:] or FAMILY_NAMES:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{name}: {tried(name, Path(folder))}", flush=True)


if __name__ == "__main__":
    main()
