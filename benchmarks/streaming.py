"""Memory and time of pruning a checkpoint of several gigabytes, against its size: `make bench-streaming`.

    python -m benchmarks.streaming --gigabytes 5

The checkpoint is a Llama with random bfloat16 weights in shards, made in a temporary folder. Every step is a process of
its own, so that each has its own peak; what it may find of its files in the page cache is dropped before it.
"libraries" loads what all of them load, and has the device work a little. "read and write" copies the checkpoint tensor
by tensor and is what the times are compared with. Each cut takes up the one calibration; a whole run is both.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from foundry.engine.context import RunContext, choose_device, choose_dtype
from foundry.engine.hardware import hardware_name
from foundry.engine.packed import Packed
from foundry.engine.prune.cutting import Cutting
from foundry.engine.prune.texts import Texts
from foundry.engine.tensors import CheckpointWriter, Entry, Reader, check_finite, write_sharded
from foundry.engine.workspace import write_json
from foundry.intake.checkpoint import open_checkpoint
from foundry.spec.family import families
from foundry.spec.stages import Prune, Repair

_CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2048, "intermediate_size": 5632,
    "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 32_000,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "tie_word_embeddings": False,
    "hidden_act": "silu", "dtype": "bfloat16",
}  # fmt: skip
_CUT = {"hidden": 1536, "ffn": 4096}
_WIDTH = 0.02
_LIBRARIES, _BASE, _CALIBRATE = "libraries", "read and write", "calibrate"
_MODES: dict[str, tuple[Repair, ...]] = {
    "cut by index": (),
    "closed-form repairs": ("refit", "rotate", "rescale"),
    "all repairs": ("refit", "rotate", "rescale", "local"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--calibration-tokens", type=int, default=512)
    parser.add_argument("--choice-tokens", type=int, default=256)
    parser.add_argument("--modes", nargs="+", choices=_MODES, default=list(_MODES))
    parser.add_argument("--folder", type=Path, help="where there is room for four times the checkpoint")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        _step(args.step, args.folder, args)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        _all(Path(folder), args)


def _all(folder: Path, args: argparse.Namespace) -> None:
    device = choose_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    _make(folder / "teacher", args.gigabytes)
    checkpoint = open_checkpoint(folder / "teacher")
    size = sum(entry.end - entry.start for entry in checkpoint.tensors.values())
    print(f"{size / 1e9:.2f} GB in bfloat16, {checkpoint.shape}; {hardware_name(device)}; torch {torch.__version__}")
    print(
        "\n| step | seconds | of read and write | CPU seconds | peak memory | of the checkpoint | not of files | GPU |"
    )
    print("|---|---|---|---|---|---|---|---|")
    found: dict[str, _Found] = {}
    for step in (_LIBRARIES, _BASE, _CALIBRATE, *args.modes):
        _forget_pages(folder)
        command = [
            sys.executable, "-m", "benchmarks.streaming", "--step", step, "--folder", str(folder),
            "--calibration-tokens", str(args.calibration_tokens), "--choice-tokens", str(args.choice_tokens),
        ]  # fmt: skip
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[step] = _Found(**json.loads(said))
        _print(step, found[step], found, size)
    for step in args.modes:
        _print(f"whole: {_CALIBRATE} and {step}", found[_CALIBRATE].and_then(found[step]), found, size)


def _print(said: str, row: "_Found", found: "dict[str, _Found]", size: int) -> None:
    ratio = f"{row.seconds / found[_BASE].seconds:.2f}" if _BASE in found else ""
    print(
        f"| {said} | {row.seconds:.1f} | {ratio} | {row.processor:.1f} | {row.peak / 1e9:.2f} GB | "
        f"{row.peak / size:.2f} | {row.anonymous / 1e9:.2f} GB | {row.device / 1e9:.2f} GB |",
        flush=True,
    )


class _Found(NamedTuple):
    """Of a step: seconds, and peaks in bytes."""

    seconds: float
    processor: float
    peak: int
    anonymous: int
    """Without what is mapped from files."""
    device: int

    def and_then(self, other: "_Found") -> "_Found":
        seconds, processor = self.seconds + other.seconds, self.processor + other.processor
        return _Found(seconds, processor, *map(max, self[2:], other[2:]))


def _step(step: str, folder: Path, args: argparse.Namespace) -> None:
    """One row, in this process; prints it as JSON."""
    device = choose_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    peak = _Peak()
    started, before_s = time.monotonic(), time.process_time()
    _work(step, folder, args)
    seconds, processor_s = time.monotonic() - started, time.process_time() - before_s
    on_device = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    # Not `ru_maxrss`, which begins at the peak of the process that has started this one.
    found = _Found(seconds, processor_s, _status("VmHWM"), peak.stop(), on_device)
    print(json.dumps(found._asdict()))


def _work(step: str, folder: Path, args: argparse.Namespace) -> None:
    checkpoint = open_checkpoint(folder / "teacher")
    device = choose_device()
    context = RunContext(emit=lambda event: None, device=device, dtype=choose_dtype(device), seed=0)
    if step == _LIBRARIES:
        square = torch.eye(256, dtype=torch.float64, device=device)
        torch.linalg.eigh(torch.linalg.cholesky(square @ square))
        return
    if step == _BASE:
        out = folder / "copy"
        out.mkdir()
        read = Reader(checkpoint, torch.device("cpu"))
        entries = [Entry(name, read.dtype(name), entry.size) for name, entry in checkpoint.tensors.items()]
        with CheckpointWriter(out, entries) as writer:
            for name in checkpoint.tensors:
                writer.write(name, read(name).clone())
        shutil.rmtree(out)
        return
    if step == _CALIBRATE:
        check_finite(checkpoint, context)
    cutting = Cutting(checkpoint, _texts(args), Prune(local_epochs=1), folder / "scratch", context)
    if step == _CALIBRATE:
        return
    plan = cutting.plan(checkpoint.shape.model_copy(update=_CUT), _MODES[step])
    slicer, out = cutting.slicer(plan), folder / "student"
    out.mkdir()
    if "local" in plan.repair:
        cutting.grow(plan, out)
    else:
        write_sharded(slicer.tensors(), slicer.entries(), out)
    write_json(out / "config.json", slicer.config())
    open_checkpoint(out)
    shutil.rmtree(out)


def _texts(args: argparse.Namespace) -> Texts:
    """Random tokens: what is measured here is memory and time."""
    length = 256
    rows = [max(1, tokens // length) for tokens in (args.calibration_tokens, args.choice_tokens)]
    ids = torch.randint(0, int(_CONFIG["vocab_size"]), (sum(rows), length), generator=torch.Generator().manual_seed(0))
    positions, counts = torch.arange(length).expand_as(ids), torch.ones_like(ids, dtype=torch.bool)
    return Texts(Packed(ids, positions, counts, bytes=0), rows[0])


def _make(folder: Path, gigabytes: float) -> None:
    """As many layers as make up the size."""
    family = families()["llama"]
    shape = family.shape_of(_CONFIG | {"num_hidden_layers": 1})
    outside = family.parameter_count(shape.model_copy(update={"layers": 0}))
    layers = max(1, round((gigabytes * 1e9 / 2 - outside) / (family.parameter_count(shape) - outside)))
    config = _CONFIG | {"num_hidden_layers": layers}
    folder.mkdir()
    write_json(folder / "config.json", config)
    places = list(family.tensors(family.shape_of(config)))
    device = choose_device()
    generator = torch.Generator(device).manual_seed(0)
    with CheckpointWriter(folder, [Entry(p.name, torch.bfloat16, p.size) for p in places], 2 * 2**30) as writer:
        for place in places:
            norm = place.weight.role.endswith("norm")
            value = torch.ones(place.size, dtype=torch.bfloat16, device=device)
            writer.write(place.name, value if norm else value.normal_(0.0, _WIDTH, generator=generator))


def _forget_pages(folder: Path) -> None:
    """Drop the checkpoint and all that was made of it from the page cache, and nothing else: libraries stay."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())  # what is not on the disk yet is kept
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class _Peak:
    """The most memory that is no file's, by looking fifty times a second."""

    def __init__(self) -> None:
        self._most = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return max(self._most, _status("RssAnon"))

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self._most = max(self._most, _status("RssAnon"))


def _status(name: str) -> int:
    """A number of this process's memory in bytes, as the kernel counts it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
