"""Speed, memory and loss of distillation, ours against TRL's trainer and a plain loop: `make bench-distill`.

    python -m benchmarks.distill --teacher DIR --data FILE --held-out FILE

Each way runs in a process of its own, one after the other and with one thread, on the same teacher, student (every
second layer of it), rows, order, rates and seed; see `distillers.py`. It prints Markdown tables for docs/results.md and
writes every figure as a JSON line to build/distill-NAME.jsonl. TRL needs an extra: `pip install -e '.[bench]'`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks import distillers
from benchmarks.distillers import CPU, Measured, Setting
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
    "ours, Muon": lambda name, setting: distillers.ours(name, setting, optimizer="muon"),
    "ours, two students": lambda name, setting: distillers.ours(name, setting, students=2),
    "ours, saved top 64": lambda name, setting: distillers.ours(name, setting, top_k=64),
}
_READ_OFTEN = ("ours, saved top 64",)
"""Ways that are measured on a quarter of the text, read four times: what a small set of data asks for."""
_WIDE = ("ours", "plain loop", "TRL GKD")
_WIDE_STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, default=Path("demo/teacher"))
    parser.add_argument("--name", default="demo", help="of the teacher in the name of the file")
    parser.add_argument("--data", type=Path, help="JSON Lines or text; by default the standard library's text")
    parser.add_argument("--held-out", type=Path, help="measure on this file instead of the held-out part of --data")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch-rows", type=int, default=8)
    parser.add_argument("--sequence-tokens", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--ways", nargs="+", choices=_WAYS, default=list(_WAYS), metavar="WAY")
    parser.add_argument("--skip-wide", action="store_true", help="leave the vocabulary of 131,072 out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", choices=_WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--wide", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        setting = _wide_setting(args) if args.wide else _setting(args, often=args.one in _READ_OFTEN)
        print(json.dumps(_WAYS[args.one](args.one, setting).as_json()))
        return
    with tempfile.TemporaryDirectory() as aside:
        if args.data is None:
            args.data = Path(aside) / "text.jsonl"
            write_jsonl(args.data)
        run(args)


def run(args: argparse.Namespace) -> None:
    """Measure each way in its own process; write each figure down as soon as it is there."""
    lines = Path("build") / f"distill-{args.name}.jsonl"
    lines.parent.mkdir(exist_ok=True)
    found: dict[bool, list[Measured]] = {False: [], True: []}
    with lines.open("w", encoding="utf-8") as file:
        for wide in (False, True):
            for way in args.ways:
                if wide and (args.skip_wide or way not in _WIDE):
                    continue
                found[wide].append(_apart(args, way, wide))
                file.write(json.dumps(found[wide][-1].as_json() | {"wide": wide, "seed": args.seed}) + "\n")
                file.flush()
    packages = ", ".join(f"{name} {_version(name)}" for name in ("torch", "transformers", "trl"))
    print(f"\n{hardware_name(CPU, 1)}; Python {sys.version.split()[0]}, {packages}; seed {args.seed}\n")
    print(table(found[False], f"{args.name}, {args.steps} steps of {args.batch_rows} x {args.sequence_tokens} tokens"))
    if found[True]:
        print("\n" + table(found[True], f"vocabulary 131,072, {_WIDE_STEPS} steps"))


def table(found: list[Measured], title: str) -> str:
    """One row a way, with its speed as a multiple of ours."""
    ours = next((m for m in found if m.method == "ours"), None)
    rows = [
        f"| {title} | tokens per CPU second | ours is faster by | peak, MiB | of it for the run, MiB | held-out loss |",
        "|---|---|---|---|---|---|",
    ]
    for m in found:
        faster = f"{ours.tokens_per_cpu_s / m.tokens_per_cpu_s:.2f}" if ours is not None else ""
        rows.append(
            f"| {m.method} | {m.tokens_per_cpu_s:,.0f} | {faster} | {m.peak_bytes / 2**20:,.0f} | "
            f"{(m.peak_bytes - m.loaded_bytes) / 2**20:,.0f} | {m.held_out_loss:.4f} |"
        )
    return "\n".join(rows)


def _apart(args: argparse.Namespace, way: str, wide: bool) -> Measured:
    own = ("teacher", "data", "held_out", "steps", "batch_rows", "sequence_tokens", "learning_rate", "seed")
    options = [(f"--{name.replace('_', '-')}", getattr(args, name)) for name in own]
    given = [str(part) for name, value in options if value is not None for part in (name, value)]
    command = [sys.executable, "-m", "benchmarks.distill", "--one", way, *given, *(["--wide"] if wide else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured = Measured(**json.loads(done.stdout.strip().splitlines()[-1]))
    print(f"{way}{', wide' if wide else ''}: {measured.tokens_per_cpu_s:,.0f} tokens per CPU second", flush=True)
    return measured


def _setting(args: argparse.Namespace, *, often: bool) -> Setting:
    tokenizer = load_tokenizer(args.teacher)
    teacher = load_model(args.teacher, dtype=torch.float32, device=CPU)
    corpus = Corpus.load(args.data, tokenizer, seed=args.seed)
    held_out = Corpus.load(args.held_out, tokenizer, seed=args.seed).train if args.held_out else corpus.held_out
    length, tokens = args.sequence_tokens, args.steps * args.batch_rows * args.sequence_tokens
    text = pack(corpus.train, tokenizer, length, max_tokens=tokens // 4 if often else tokens, seed=args.seed)
    watched = pack(held_out, tokenizer, length, max_tokens=16_384, seed=args.seed)
    return _with_schedule(args, teacher, distillers.half_the_layers(teacher), text, watched, tokens)


def _wide_setting(args: argparse.Namespace) -> Setting:
    """512 tokens a step: the logits of one model take 256 MiB in float32."""
    rows = 2 * _WIDE_STEPS
    generator = torch.Generator().manual_seed(args.seed)
    ids_NS = torch.randint(0, 131_072, (rows, 256), generator=generator, dtype=torch.int32)
    targets_NS = torch.ones_like(ids_NS, dtype=torch.bool)
    targets_NS[:, -1] = False
    text = Packed(ids_NS, torch.arange(256, dtype=torch.int32).expand(rows, -1).contiguous(), targets_NS, bytes=1)
    args.batch_rows = 2
    teacher = distillers.wide_vocabulary(64, args.seed)
    return _with_schedule(args, teacher, distillers.wide_vocabulary(48, args.seed + 1), text, text, rows * 256)


def _with_schedule(
    args: argparse.Namespace, teacher: distillers.PreTrainedModel, student: distillers.PreTrainedModel, text: Packed,
    held_out: Packed, tokens: int,
) -> Setting:  # fmt: skip
    schedule = make_schedule(
        text, tokens=tokens, batch_tokens=args.batch_rows * text.sequence_tokens, peak_rate=args.learning_rate,
        warmup_ratio=0.1, seed=args.seed,
    )  # fmt: skip
    return Setting(teacher=teacher, student=student, text=text, held_out=held_out, schedule=schedule)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
