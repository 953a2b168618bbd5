"""How many tokens a student needs: repaired, plainly sliced, and of the same shape from scratch: `make bench-tokens`.

    python -m benchmarks.tokens --teacher DIR --data FILE --held-out FILE

N tokens distil our repaired student. The plain Minitron slice of the same shape is distilled on 10 N; ours gets shares
of that until it is as good. A model of the same shape with random weights learns the text itself on up to 40 N. Every
run has its own whole schedule, reads the first tokens of one text in one order, and is measured on the same windows;
every kind gets the best of several learning rates and sizes of a step. Calibration reads the other end of the text, as
in a job. Prints Markdown for docs/results.md and writes each run as a JSON line to build/tokens-NAME.jsonl.
"""

import argparse
import copy
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.cuts import ALL, DEFAULTS, Bench
from benchmarks.distillers import CPU
from demo.corpus import write_jsonl
from foundry.engine.attention import attend_within_documents
from foundry.engine.corpus import Corpus, pack
from foundry.engine.distill.learner import Learner
from foundry.engine.distill.objectives import Goal, match_teacher, predict_text
from foundry.engine.distill.schedule import make_schedule
from foundry.engine.distill.trainer import Training, summary, train
from foundry.engine.hardware import hardware_name
from foundry.engine.models import load_tokenizer
from foundry.engine.norms import fuse_norms
from foundry.engine.workspace import Workspace

OURS, PLAIN, SCRATCH = "ours, all repairs", "plain Minitron slice", "from scratch"
_RATES = {OURS: (3e-4, 1e-3), PLAIN: (1e-3, 3e-3), SCRATCH: (1e-3, 3e-3, 1e-2)}
_TRIED_ON = 2
"""Learning rates are compared on so many times N tokens."""
_PLAIN_TIMES = 10
_SHARES = (0.0125, 0.025, 0.05, 0.1, 0.15, 0.2)
"""Of the plain recipe's tokens, that ours gets until it is as good."""


class Recipe(NamedTuple):
    """What every kind chooses for itself."""

    rate: float
    batch_tokens: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run."""

    method: str
    tokens: int
    recipe: Recipe
    before: float
    """Held-out loss before the first step, nats per token."""
    after: float
    seconds: float


class Course:
    """One teacher, one shape, one text: trains a student on its first tokens."""

    def __init__(self, bench: Bench, args: argparse.Namespace) -> None:
        self._bench, self._tokenizer = bench, load_tokenizer(args.teacher)
        # Calibration has read the beginning: `Bench` keeps to the order, and a job reads both from their other ends.
        self._documents = Corpus.load(args.data, self._tokenizer, seed=args.seed).train[::-1]
        self._length, self._seed = bench.text.sequence_tokens, args.seed
        self.shape = bench.shape.model_copy(update=_shape(args.shape))
        attend_within_documents(bench.teacher, torch.float32)
        fuse_norms(bench.teacher)

    @cached_property
    def sliced(self) -> PreTrainedModel:
        return self._bench.sliced(self.shape)

    @cached_property
    def repaired(self) -> PreTrainedModel:
        return self._bench.cut(self.shape, ALL)

    def start(self, method: str) -> PreTrainedModel:
        """A student before its first step."""
        if method != SCRATCH:
            return copy.deepcopy(self.repaired if method == OURS else self.sliced)
        torch.manual_seed(self._seed)
        return AutoModelForCausalLM.from_config(self.sliced.config, dtype=torch.float32).eval()

    def run(self, method: str, tokens: int, recipe: Recipe) -> Run:
        """The loop that a job runs, on the first `tokens` of the text: from the teacher, or from the text alone."""
        started, context = time.monotonic(), self._bench.context
        text = pack(self._documents, self._tokenizer, self._length, max_tokens=tokens)
        schedule = make_schedule(
            text, tokens=tokens, batch_tokens=recipe.batch_tokens, peak_rate=recipe.rate, warmup_ratio=0.05,
            seed=self._seed,
        )  # fmt: skip
        objective = predict_text(context) if method == SCRATCH else match_teacher(self._bench.teacher, Goal(), context)
        training = Training(
            stage="distill", schedule=schedule, text=text, held_out=self._bench.held_out, objective=objective,
            checkpoint_steps=schedule.steps + 1, evaluate_steps=schedule.steps, digest="benchmark",
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            learner = Learner(method, self.start(method), torch.float32)
            said = summary(train([learner], training, Workspace(Path(folder)), context)[method])
        return Run(
            method=method, tokens=int(str(said["tokens"])), recipe=recipe,
            before=float(str(said["held_out_loss_before"])), after=float(str(said["held_out_loss_after"])),
            seconds=time.monotonic() - started,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, default=Path("demo/teacher"))
    parser.add_argument("--name", default="demo", help="of the teacher in the name of the file")
    parser.add_argument("--data", type=Path, help="JSON Lines or text; by default the standard library's text")
    parser.add_argument("--held-out", type=Path, help="measure on this file instead of the held-out part of --data")
    parser.add_argument("--tokens", type=int, default=49_152, help="N")
    parser.add_argument("--calibration-tokens", type=int, default=16_384)
    parser.add_argument("--held-out-tokens", type=int, default=16_384)
    parser.add_argument("--steps-of", type=int, nargs="+", default=[512, 2048], help="tokens of a step to choose from")
    parser.add_argument("--shape", default="hidden=192,ffn=384", help="what of the teacher's shape changes")
    parser.add_argument("--kinds", nargs="+", choices=("distilled", "scratch"), default=["distilled", "scratch"])
    parser.add_argument("--times", type=int, nargs="*", default=[1, 2, 5, 10, 20, 40], help="of N, for scratch")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as aside:
        if args.data is None:
            args.data = Path(aside) / "text.jsonl"
            write_jsonl(args.data)
        run(args, Path(aside))


def run(args: argparse.Namespace, scratch: Path) -> None:
    """Measure, and write each run down as soon as it is there."""
    bench = Bench(
        args.teacher, args.data, args.held_out, seed=args.seed, candidates=1,
        calibration_tokens=args.calibration_tokens, choice_tokens=4096, held_out_tokens=args.held_out_tokens,
        scratch=scratch / "scratch",
    )  # fmt: skip
    course = Course(bench, args)
    lines = Path("build") / f"tokens-{args.name}.jsonl"
    lines.parent.mkdir(exist_ok=True)
    found: list[Run] = []
    with lines.open("w", encoding="utf-8") as file:
        for one in _measured(course, args):
            found.append(one)
            file.write(json.dumps(asdict(one) | {"seed": args.seed, "shape": course.shape.in_words}) + "\n")
            file.flush()
            print(
                f"{one.method}, {one.tokens:,} tokens at {_said(one.recipe)}: {one.before:.4f} -> {one.after:.4f}",
                flush=True,
            )
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    print(f"\n{hardware_name(CPU)}; Python {sys.version.split()[0]}, {packages}; seed {args.seed}")
    print(
        f"{args.name}: teacher {bench.base:.4f} nats on {bench.held_out.counted_tokens:,} held-out tokens; students of "
        f"{course.shape.in_words}, {bench.size(course.shape):,} of {bench.whole:,} parameters without "
        f"embedding; calibration reads {args.calibration_tokens:,} tokens of the text's other end "
        f"{1 + DEFAULTS.local_epochs} times\n"
    )
    print(table(found, args.tokens))


def _measured(course: Course, args: argparse.Namespace) -> Iterator[Run]:
    if "distilled" in args.kinds:
        yield from _distilled(course, args)
    if "scratch" in args.kinds:
        recipe = _best_recipe(course, SCRATCH, args.tokens, args.steps_of)
        for times in args.times:
            yield course.run(SCRATCH, times * args.tokens, recipe)


def _distilled(course: Course, args: argparse.Namespace) -> Iterator[Run]:
    our_recipe = _best_recipe(course, OURS, args.tokens, args.steps_of)
    first = course.run(OURS, args.tokens, our_recipe)
    yield first
    plain_tokens = _PLAIN_TIMES * args.tokens
    plain = course.run(PLAIN, plain_tokens, _best_recipe(course, PLAIN, args.tokens, args.steps_of))
    yield plain
    for share in _SHARES if first.before > plain.after else ():
        ours = course.run(OURS, round(share * plain_tokens), our_recipe)
        yield ours
        if ours.after <= plain.after:
            break


def _best_recipe(course: Course, method: str, tokens: int, batches: Sequence[int]) -> Recipe:
    recipes = itertools.starmap(Recipe, itertools.product(_RATES[method], batches))
    tried = [course.run(method, _TRIED_ON * tokens, recipe) for recipe in recipes]
    print(f"{method}: " + ", ".join(f"{one.after:.4f} at {_said(one.recipe)}" for one in tried), flush=True)
    return min(tried, key=lambda one: one.after).recipe


def _said(recipe: Recipe) -> str:
    return f"{recipe.rate:g}, {recipe.batch_tokens} a step"


def table(found: Sequence[Run], tokens: int) -> str:
    """One row a run."""
    rows = [
        "| student | tokens | of N | rate | a step | held-out loss before | after |",
        "|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {one.method} | {one.tokens:,} | {one.tokens / tokens:.2g} | {one.recipe.rate:g} | "
        f"{one.recipe.batch_tokens} | {one.before:.4f} | {one.after:.4f} |"
        for one in found
    ]
    return "\n".join(rows)


def _shape(text: str) -> dict[str, int]:
    return {axis: int(length) for axis, _, length in (part.partition("=") for part in text.split(","))}


if __name__ == "__main__":
    main()
