"""Speed, memory and loss of distillation, ours against TRL's trainer and loops by hand: `make bench-distill`.

    python -m benchmarks.distill --teacher DIR --data FILE --held-out FILE
    python -m benchmarks.distill --random llama-1b --device cuda

Each way runs in a process of its own, one after the other and on a CPU with one thread, on the same teacher, student
(every second layer of it), rows, order, rates and seed; see `distillers.py`. It prints Markdown tables for
docs/results.md and writes every figure as a JSON line to build/distill-NAME.jsonl. A way that fails is said and left
out. `--random` takes a teacher with random weights and random tokens: it needs no files, and is the case of a
vocabulary of 128k at its true size. TRL needs an extra, `pip install -e '.[bench]'`, and Liger
another, `bench-gpu`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from transformers import PreTrainedModel

from benchmarks import distillers
from benchmarks.distillers import CPU, Measured, Setting
from benchmarks.random_models import SHAPES, half_the_layers, random_rows, random_teacher, wide_vocabulary
from demo.corpus import write_jsonl
from foundry.engine.corpus import Corpus, pack
from foundry.engine.distill.schedule import make_schedule
from foundry.engine.hardware import hardware_name
from foundry.engine.models import load_model, load_tokenizer
from foundry.engine.packed import Packed

_WAYS: Mapping[str, Callable[[str, Setting], Measured]] = {
    "ours": distillers.ours,
    "plain loop": distillers.plain,
    "TRL GKD": distillers.trl,
    "TRL GKD, documents apart": lambda name, setting: distillers.trl(name, setting, apart=True),
    "Liger": distillers.liger,
    "ours, compiled": lambda name, setting: distillers.ours(name, setting, compiles=True),
    "ours, Muon": lambda name, setting: distillers.ours(name, setting, optimizer="muon"),
    "ours, two students": lambda name, setting: distillers.ours(name, setting, students=2),
    "ours, saved top 64": lambda name, setting: distillers.ours(name, setting, top_k=64),
}
_READ_OFTEN = ("ours, saved top 64",)
"""Ways that are measured on a quarter of the text, read four times: what a small set of data asks for."""
_WIDE = ("ours", "plain loop", "TRL GKD")
_WIDE_STEPS = 3
_ON_TEXT = tuple(way for way in _WAYS if way != "Liger")
_ON_RANDOM = (*_WIDE, "Liger", "ours, compiled")
_MICRO_TOKENS = 8192
"""Of random rows so many tokens at a time in the ways that do not find their number, which is what ours takes; half of
them where memory runs out."""
_LAST_LINES = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, default=Path("demo/teacher"))
    parser.add_argument("--name", default="demo", help="of the teacher in the name of the file")
    parser.add_argument("--data", type=Path, help="JSON Lines or text; by default the standard library's text")
    parser.add_argument("--held-out", type=Path, help="measure on this file instead of the held-out part of --data")
    parser.add_argument("--random", choices=SHAPES, help="a teacher of this shape and tokens at random, no files")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda needs --random")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of products: float32; on a GPU bfloat16")
    parser.add_argument("--steps", type=int, help="24; of random rows 12")
    parser.add_argument("--warm-up-steps", type=int, help="the first steps, which are not timed: 1; of random rows 4")
    parser.add_argument("--batch-rows", type=int, default=8)
    parser.add_argument("--rows-at-a-time", type=int, help="but for ours: all of a step; of random rows 8,192 tokens")
    parser.add_argument("--sequence-tokens", type=int, help="256; of random rows 2,048")
    parser.add_argument("--learning-rate", type=float, help="1e-3; of random rows 1e-4")
    parser.add_argument("--ways", nargs="+", choices=_WAYS, metavar="WAY", help=f"of {', '.join(_WAYS)}")
    parser.add_argument("--limit-s", type=float, help="seconds that one way may take")
    parser.add_argument("--skip-wide", action="store_true", help="leave the vocabulary of 131,072 out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", choices=_WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--wide", action="store_true", help=argparse.SUPPRESS)
    args = _filled(parser, parser.parse_args())
    if args.device == "cpu":
        torch.set_num_threads(1)
    if args.one:
        print(json.dumps(_WAYS[args.one](args.one, _setting_of(args)).as_json()))
        return
    with tempfile.TemporaryDirectory() as aside:
        if args.data is None and args.random is None:
            args.data = Path(aside) / "text.jsonl"
            write_jsonl(args.data)
        sys.exit(run(args))


def _filled(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    """The arguments with the defaults of the setting that they ask for."""
    if args.device == "cuda" and args.random is None:
        parser.error("--device cuda needs --random SHAPE: text is measured on a CPU")
    defaults = {"steps": 24, "warm_up_steps": 1, "sequence_tokens": 256, "learning_rate": 1e-3, "ways": _ON_TEXT}
    if args.random is not None:
        defaults = {
            "steps": 12, "warm_up_steps": 4, "sequence_tokens": 2048, "learning_rate": 1e-4, "ways": _ON_RANDOM,
        }  # fmt: skip
        args.skip_wide, args.name = True, args.random
    defaults["dtype"] = "bfloat16" if args.device == "cuda" else "float32"
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.random is not None and args.rows_at_a_time is None:
        args.rows_at_a_time = max(1, min(args.batch_rows, _MICRO_TOKENS // args.sequence_tokens))
    if args.rows_at_a_time and args.batch_rows % args.rows_at_a_time:
        parser.error(
            f"--rows-at-a-time {args.rows_at_a_time} does not divide --batch-rows {args.batch_rows}; give one that does"
        )
    if args.steps < args.warm_up_steps + 1 or args.warm_up_steps < 1:
        parser.error(f"--steps {args.steps} leaves no step to time; give more than --warm-up-steps, which is 1 or more")
    return args


def run(args: argparse.Namespace) -> int:
    """Measure each way in its own process; write each figure down as soon as it is there. Return how many failed."""
    lines = Path("build") / f"distill-{args.name}.jsonl"
    lines.parent.mkdir(exist_ok=True)
    found: dict[bool, list[Measured]] = {False: [], True: []}
    failed = 0
    with lines.open("w", encoding="utf-8") as file:
        for wide in (False, True):
            for way in args.ways:
                if wide and (args.skip_wide or way not in _WIDE):
                    continue
                one = _apart(args, way, wide)
                if one is None:
                    failed += 1
                    continue
                found[wide].append(one)
                file.write(json.dumps(one.as_json() | {"wide": wide, "seed": args.seed}) + "\n")
                file.flush()
    device = torch.device(args.device)
    packages = ", ".join(f"{name} {_version(name)}" for name in ("torch", "transformers", "trl", "liger-kernel"))
    print(f"\n{hardware_name(device)}; Python {sys.version.split()[0]}, {packages}; seed {args.seed}\n")
    title = f"{args.name}, {args.dtype}, {args.steps} steps of {args.batch_rows} x {args.sequence_tokens} tokens"
    print(table(found[False], title, device))
    if found[True]:
        print("\n" + table(found[True], f"vocabulary 131,072, {_WIDE_STEPS} steps", device))
    return failed


def table(found: Sequence[Measured], title: str, device: torch.device) -> str:
    """One row a way, with its speed as a multiple of ours."""
    ours = next((m for m in found if m.method == "ours"), None)
    heads = [
        title, "tokens per CPU second" if device.type == "cpu" else "tokens/s", "ours is faster by", "peak, MiB",
        "of it for the run, MiB", "held-out loss",
    ]  # fmt: skip
    has_kl = any(m.kl_to_teacher is not None for m in found)
    rows = [[*heads, "KL to the teacher"] if has_kl else heads]
    rows.append(["---"] * len(rows[0]))
    for m in found:
        faster = f"{ours.tokens_per_s / m.tokens_per_s:.2f}" if ours is not None else ""
        cells = [
            m.method, f"{m.tokens_per_s:,.0f}", faster, f"{m.peak_bytes / 2**20:,.0f}",
            f"{(m.peak_bytes - m.loaded_bytes) / 2**20:,.0f}", f"{m.held_out_loss:.4f}",
        ]  # fmt: skip
        rows.append([*cells, f"{m.kl_to_teacher:.4f}"] if m.kl_to_teacher is not None else cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _apart(args: argparse.Namespace, way: str, wide: bool) -> Measured | None:
    """One way in a process of its own; None, and the end of what it said, when it fails.

    Where a GPU has too little memory it is tried again with half of the rows at a time.
    """
    own = (
        "teacher", "data", "held_out", "random", "device", "dtype", "steps", "warm_up_steps", "batch_rows",
        "rows_at_a_time", "sequence_tokens", "learning_rate", "seed",
    )  # fmt: skip
    rows = args.rows_at_a_time
    while True:
        values = {name: getattr(args, name) for name in own} | {"rows_at_a_time": rows}
        options = [(f"--{name.replace('_', '-')}", str(value)) for name, value in values.items() if value is not None]
        given = [part for option in options for part in option]
        command = [sys.executable, "-m", "benchmarks.distill", "--one", way, *given, *(["--wide"] if wide else [])]
        name, started = f"{way}{', wide' if wide else ''}", time.monotonic()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=args.limit_s)
        except subprocess.TimeoutExpired:
            print(f"{name}: FAILED, not done after {args.limit_s:g} s", flush=True)
            return None
        took = f"{time.monotonic() - started:.0f} s in all"
        if done.returncode == 0:
            break
        print(f"{name}: FAILED, {took}", *done.stderr.strip().splitlines()[-_LAST_LINES:], sep="\n", flush=True)
        if "OutOfMemoryError" not in done.stderr or rows is None or rows == 1 or way.startswith("ours"):
            return None
        rows //= 2
        print(f"{name}: again with {rows} rows at a time", flush=True)
    measured = Measured(**json.loads(done.stdout.strip().splitlines()[-1]))
    print(f"{name}: {measured.tokens_per_s:,.0f} tokens a second; {took}", flush=True)
    return measured if rows == args.rows_at_a_time else replace(measured, method=f"{way}, {rows} rows at a time")


def _setting_of(args: argparse.Namespace) -> Setting:
    if args.random is not None:
        return _random_setting(args)
    return _wide_setting(args) if args.wide else _setting(args, often=args.one in _READ_OFTEN)


def _setting(args: argparse.Namespace, *, often: bool) -> Setting:
    tokenizer = load_tokenizer(args.teacher)
    teacher = load_model(args.teacher, dtype=torch.float32, device=CPU)
    corpus = Corpus.load(args.data, tokenizer, seed=args.seed)
    held_out = Corpus.load(args.held_out, tokenizer, seed=args.seed).train if args.held_out else corpus.held_out
    length, tokens = args.sequence_tokens, args.steps * args.batch_rows * args.sequence_tokens
    text = pack(corpus.train, tokenizer, length, max_tokens=tokens // 4 if often else tokens, seed=args.seed)
    watched = pack(held_out, tokenizer, length, max_tokens=16_384, seed=args.seed)
    return _with_schedule(args, teacher, half_the_layers(teacher), text, watched, tokens)


def _wide_setting(args: argparse.Namespace) -> Setting:
    """512 tokens a step: the logits of one model take 256 MiB in float32."""
    rows = 2 * _WIDE_STEPS
    generator = torch.Generator().manual_seed(args.seed)
    ids_NS = torch.randint(0, 131_072, (rows, 256), generator=generator, dtype=torch.int32)
    targets_NS = torch.ones_like(ids_NS, dtype=torch.bool)
    targets_NS[:, -1] = False
    text = Packed(ids_NS, torch.arange(256, dtype=torch.int32).expand(rows, -1).contiguous(), targets_NS, bytes=1)
    args.batch_rows = 2
    teacher = wide_vocabulary(64, args.seed)
    return _with_schedule(args, teacher, wide_vocabulary(48, args.seed + 1), text, text, rows * 256)


def _random_setting(args: argparse.Namespace) -> Setting:
    """Every step reads rows of its own; the student is compared with its teacher on as many as one step reads."""
    teacher = random_teacher(args.random, torch.device(args.device), args.seed)
    vocabulary, length, rows = teacher.config.vocab_size, args.sequence_tokens, args.steps * args.batch_rows
    text = random_rows(vocabulary, rows, length, args.seed)
    watched = random_rows(vocabulary, args.batch_rows, length, args.seed + 1)
    setting = _with_schedule(args, teacher, half_the_layers(teacher), text, watched, rows * length)
    return replace(setting, measures_kl=True)


def _with_schedule(
    args: argparse.Namespace, teacher: PreTrainedModel, student: PreTrainedModel, text: Packed,
    held_out: Packed, tokens: int,
) -> Setting:  # fmt: skip
    schedule = make_schedule(
        text, tokens=tokens, batch_tokens=args.batch_rows * text.sequence_tokens, peak_rate=args.learning_rate,
        warmup_ratio=0.1, seed=args.seed,
    )  # fmt: skip
    dtype = getattr(torch, args.dtype)
    return Setting(
        teacher=teacher.to(dtype), student=student, text=text, held_out=held_out, schedule=schedule,
        rows_at_a_time=args.rows_at_a_time, warm_up_steps=args.warm_up_steps, dtype=dtype,
    )  # fmt: skip


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
