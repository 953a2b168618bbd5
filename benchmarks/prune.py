"""Held-out loss right after the cut, with each repair alone and all together: `make bench`.

    python -m benchmarks.prune --teacher DIR --data FILE

Prints a Markdown table for docs/results.md. Everything is measured in one run on the same statistics and windows.
"""

import argparse
import platform
import tempfile
from pathlib import Path

import torch
import transformers

from demo.corpus import write_jsonl
from foundry.engine.context import RunContext, choose_device
from foundry.engine.corpus import Corpus, pack
from foundry.engine.evaluate.compare import compare
from foundry.engine.models import load_model, load_tokenizer
from foundry.engine.prune.calibrate import calibrate
from foundry.engine.prune.plan import make_plan
from foundry.engine.prune.slicer import Slicer
from foundry.engine.prune.stage import student_in_memory
from foundry.intake.checkpoint import context_limit, open_checkpoint
from foundry.intake.documents import read_documents
from foundry.spec.family import Shape
from foundry.spec.search import choices
from foundry.spec.stages import Axis, Repair

ALL_AXES: tuple[Axis, ...] = ("ffn", "hidden", "heads", "layers")
METHODS: dict[str, tuple[Repair, ...]] = {
    "plain slice (Minitron)": (),
    "rescale": ("rescale",),
    "refit": ("refit",),
    "rotate": ("rotate",),
    "refit + rescale": ("refit", "rescale"),
    "all (default)": ("refit", "rotate", "rescale"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, default=Path("demo/teacher"))
    parser.add_argument("--data", type=Path, help="JSON Lines or text; by default the standard library's text")
    parser.add_argument("--held-out", type=Path, help="measure on this file instead of the held-out part of --data")
    parser.add_argument("--calibration-tokens", type=int, default=65_536)
    parser.add_argument("--held-out-tokens", type=int, default=32_768)
    parser.add_argument("--seed", type=int, default=0)
    with tempfile.TemporaryDirectory() as folder:
        measure(parser.parse_args(), Path(folder))


def measure(args: argparse.Namespace, folder: Path) -> None:
    """Calibrate once, then cut and compare."""
    data = args.data or folder / "text.jsonl"
    if args.data is None:
        write_jsonl(data)
    device = choose_device()
    context = RunContext(emit=lambda event: None, device=device, dtype=torch.float32, seed=args.seed)
    checkpoint = open_checkpoint(args.teacher)
    tokenizer = load_tokenizer(args.teacher)
    length = min(256, context_limit(checkpoint.config) or 256)
    corpus = Corpus.load(data, tokenizer, seed=args.seed)
    measured_on = list(read_documents(args.held_out)) if args.held_out else corpus.held_out
    held_out = pack(measured_on, tokenizer, length, max_tokens=args.held_out_tokens)
    text = pack(corpus.train, tokenizer, length, max_tokens=args.calibration_tokens)
    teacher = load_model(args.teacher, dtype=context.dtype, device=device)
    statistics = calibrate(teacher, checkpoint.family, checkpoint.shape, text, context)
    base = compare(teacher, None, held_out, context).held_out_loss

    def increase(shape: Shape, repairs: tuple[Repair, ...]) -> float:
        plan = make_plan(checkpoint.family, checkpoint.shape, shape, statistics, repairs, "benchmark")
        slicer = Slicer(checkpoint=checkpoint, plan=plan, statistics=statistics, device=device)
        return compare(student_in_memory(slicer, context), None, held_out, context).held_out_loss - base

    print(
        f"Teacher {args.teacher}: held-out loss {base:.4f} nats on {held_out.counted_tokens:,} tokens; calibrated on "
        f"{text.counted_tokens:,}; seed {args.seed}; {platform.machine()} {device.type}, float32, "
        f"torch {torch.__version__}, transformers {transformers.__version__}\n"
    )
    print("| cut | parameters | " + " | ".join(METHODS) + " |")
    print("|---" * (2 + len(METHODS)) + "|")
    for name, shape in cuts(checkpoint.shape).items():
        cells = [f"{increase(shape, repairs):.3f}" for repairs in METHODS.values()]
        parameters = checkpoint.family.parameter_count(shape, checkpoint.present)
        print(f"| {name} | {parameters:,} | " + " | ".join(cells) + " |", flush=True)


def cuts(teacher: Shape) -> dict[str, Shape]:
    """One axis at a time, then two together, on the grid that the planner uses."""

    def share(axis: str, kept: float) -> int:
        lengths = [n for n in choices(teacher, ALL_AXES)[axis] if axis != "hidden" or n % teacher.heads == 0]
        return min(lengths, key=lambda n: abs(n - kept * getattr(teacher, axis)))

    half_ffn, most, half = share("ffn", 0.5), share("hidden", 0.75), share("hidden", 0.5)
    changes: dict[str, dict[str, int]] = {
        f"ffn {half_ffn}": {"ffn": half_ffn},
        f"hidden {most}": {"hidden": most},
        f"hidden {half}": {"hidden": half},
        f"heads {share('heads', 0.5)}": {"heads": share("heads", 0.5)},
        f"layers {teacher.layers - 1}": {"layers": teacher.layers - 1},
        f"ffn {half_ffn} and hidden {most}": {"ffn": half_ffn, "hidden": most},
    }
    return {
        name: teacher.model_copy(update=change)
        for name, change in changes.items()
        if teacher.model_copy(update=change) != teacher
    }


if __name__ == "__main__":
    main()
