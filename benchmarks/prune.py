"""Held-out loss right after the cut, before any distillation, against other ways to cut: `make bench-prune`.

    python -m benchmarks.prune --teacher DIR --data FILE --held-out FILE

Every method leaves (nearly) the same number of parameters outside embedding and head. One run calibrates once and
measures everything on the same windows. It prints Markdown tables for docs/results.md, writes every figure as a JSON
line under build/, and draws docs/plots/prune-NAME.png. Peers and plot need an extra: `pip install -e '.[bench]'`.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.cuts import DEFAULTS, Bench, Record
from demo.corpus import write_jsonl
from foundry.spec.stages import Repair

_ABLATION: dict[str, tuple[Repair, ...]] = {
    "none": (),
    "refit alone": ("refit",),
    "rotate alone": ("rotate",),
    "rescale alone": ("rescale",),
    "all without local": ("refit", "rotate", "rescale"),
    "refit + rotate": ("refit", "rotate"),
    "all without rescale": ("refit", "rotate", "local"),
    "local alone": ("local",),
    "all without rotate": ("refit", "rescale", "local"),
    "all without refit": ("rotate", "rescale", "local"),
}
_PLAIN, _OURS = "Minitron statistic, plain slice", "ours, all repairs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, default=Path("demo/teacher"))
    parser.add_argument("--name", help="of the teacher in the names of files; by default from its folder")
    parser.add_argument("--data", type=Path, help="JSON Lines or text; by default the standard library's text")
    parser.add_argument("--held-out", type=Path, help="measure on this file instead of the held-out part of --data")
    parser.add_argument("--calibration-tokens", type=int, default=65_536)
    parser.add_argument("--held-out-tokens", type=int, default=32_768)
    parser.add_argument("--candidates", type=int, default=6, help="shapes that each method compares")
    parser.add_argument("--choice-tokens", type=int, default=4096, help="text that shapes are compared on")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.5, 0.7], help="shares that go")
    parser.add_argument("--ablate-local", type=float, nargs="*", default=[0.5], help="ratios with the slow ablations")
    parser.add_argument("--ablations", nargs="*", choices=_ABLATION, default=list(_ABLATION), metavar="NAME")
    parser.add_argument("--skip-peers", action="store_true", help="leave Torch-Pruning out")
    parser.add_argument("--show", type=Path, nargs="+", metavar="JSONL", help="measure nothing; join earlier runs")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = args.teacher.resolve()
    args.name = args.name or (folder.parent.name if folder.name == "teacher" else folder.name)
    if args.show:
        show(args.show, args.name)
        return
    with tempfile.TemporaryDirectory() as aside:
        if args.data is None:
            args.data = Path(aside) / "text.jsonl"
            write_jsonl(args.data)
        run(args, Path(aside))


def run(args: argparse.Namespace, scratch: Path) -> None:
    """Measure, and write each figure down as soon as it is there."""
    started = time.monotonic()
    bench = Bench(
        args.teacher, args.data, args.held_out, seed=args.seed, candidates=args.candidates,
        calibration_tokens=args.calibration_tokens, choice_tokens=args.choice_tokens,
        held_out_tokens=args.held_out_tokens, scratch=scratch / "scratch",
    )  # fmt: skip
    records: list[Record] = []
    lines = Path("build") / f"prune-{args.name}.jsonl"
    lines.parent.mkdir(exist_ok=True)
    with lines.open("w", encoding="utf-8") as file, suppress(KeyboardInterrupt):  # and show what is there
        for record in _measured(bench, args):
            records.append(record)
            seconds = time.monotonic() - started
            more = {"whole": bench.whole, "seed": args.seed, "at_s": round(seconds, 1)}
            file.write(json.dumps(record.as_json() | more) + "\n")
            file.flush()
            print(f"{seconds:6.0f} s  {record.gone:.0%}  {record.method}: {record.increase:+.3f}", flush=True)
    print(f"\n{_heading(bench, args)}; {time.monotonic() - started:.0f} s in all\n")
    print("\n".join(tables(records, bench.whole)))
    plot(records, bench.whole, args.name)


def show(files: Sequence[Path], name: str) -> None:
    """Tables and plot of what earlier runs wrote; they must be of one teacher, with one text and one seed."""
    found = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    fields = Record.__dataclass_fields__
    records = [Record(**{key: value for key, value in one.items() if key in fields}) for one in found]
    print("\n".join(tables(records, found[0]["whole"])))
    plot(records, found[0]["whole"], name)


def _measured(bench: Bench, args: argparse.Namespace) -> Iterator[Record]:
    for gone in args.ratios:
        yield bench.plain(_PLAIN, gone)
        yield bench.ours(_OURS, gone)
        yield bench.magnitude("weight magnitude", gone)
        yield bench.random("random indices, mean of 3", gone)
        yield from bench.layer_drop("whole layers (ShortGPT distance)", gone)
    if not args.skip_peers:
        from benchmarks.peers import TorchPruning

        peer = TorchPruning(bench)
        for gone in args.ratios:
            yield from peer.measured(gone)
    for gone in args.ratios:
        yield bench.ablation(
            "all without local, Minitron's statistic", gone, _ABLATION["all without local"], bench.minitron
        )
    for gone in args.ablate_local:
        yield bench.ablation("all, Minitron's statistic", gone, DEFAULTS.repair, bench.minitron)
    for name in args.ablations:
        repairs = _ABLATION[name]
        for gone in args.ablate_local if "local" in repairs else args.ratios:
            yield bench.ablation(name, gone, repairs)


def tables(records: Sequence[Record], whole: int) -> Iterator[str]:
    """All methods, then the repairs one by one at the shapes of all repairs together."""
    plain = {record.gone: record.increase for record in records if record.method == _PLAIN}
    yield "| gone | method | shape | parameters without embedding | kept | increase, nats | of plain Minitron |"
    yield "|---|---|---|---|---|---|---|"
    methods = [record for record in records if record.ablation is None]
    for gone in plain:
        for r in sorted((r for r in methods if r.gone == gone), key=lambda r: r.increase):
            yield (
                f"| {gone:.0%} | {r.method} | {r.shape} | {r.parameters:,} | {r.parameters / whole:.1%} | "
                f"{r.increase:.3f} | {r.increase / plain[gone]:.2f} |"
            )
    ablation: dict[str, dict[float, float]] = {}
    for record in records:
        if record.ablation is not None:
            ablation.setdefault(record.ablation, {})[record.gone] = record.increase
    if not ablation:
        return
    ablation["all"] = {record.gone: record.increase for record in records if record.method == _OURS}
    yield ""
    yield "| repairs | " + " | ".join(f"{gone:.0%} gone" for gone in plain) + " |"
    yield "|---" * (1 + len(plain)) + "|"
    for name, found in ablation.items():
        yield f"| {name} | " + " | ".join(f"{found[gone]:.3f}" if gone in found else "" for gone in plain) + " |"


def _heading(bench: Bench, args: argparse.Namespace) -> str:
    return (
        f"{args.name}: held-out loss {bench.base:.4f} nats on {bench.held_out.counted_tokens:,} tokens; "
        f"{bench.whole:,} parameters without embedding; calibrated on {bench.text.counted_tokens:,} tokens; "
        f"{bench.candidates} shapes compared on {bench.choice.counted_tokens:,}; "
        f"local repair {DEFAULTS.local_epochs} epochs; seed {args.seed}; {platform.machine()} "
        f"{bench.context.device.type}, float32, Python {platform.python_version()}, "
        + ", ".join(_versions("torch", "transformers", "torch-pruning"))
    )


def _versions(*names: str) -> Iterator[str]:
    for name in names:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"no {name}"


def plot(records: Sequence[Record], whole: int, name: str) -> None:
    try:
        import matplotlib
    except ImportError:
        print("\nno plot: matplotlib is not installed")
        return
    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, StrMethodFormatter

    lines: dict[str, list[Record]] = {}
    for record in records:
        if record.ablation is None or record.ablation == "all without local":
            lines.setdefault(record.method, []).append(record)
    figure, axes = pyplot.subplots(figsize=(9.2, 4.6))
    for number, (method, found) in enumerate(sorted(lines.items(), key=lambda item: item[1][-1].increase)):
        style: dict[str, Any] = {"linewidth": 2.6, "color": "black"} if method == _OURS else {"linewidth": 1.4}
        kept = [record.parameters / whole for record in found]
        axes.plot(kept, [r.increase for r in found], marker="osD^vPX*<>"[number % 10], label=method, **style)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.invert_xaxis()
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("parameters kept, without embedding")
    axes.set_ylabel("increase of the held-out loss, nats per token")
    axes.set_title(f"Right after the cut, no distillation ({name})")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9)
    target = Path("docs/plots") / f"prune-{name}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=100, bbox_inches="tight")
    print(f"\n{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
