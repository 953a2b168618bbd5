"""A Mistral NeMo 12B distilled into a Minitron 8B on one accelerator: does it fit, how fast is it? `make bench-large`.

    python -m benchmarks.large --batch-rows 64 --steps 2

Both have the real shapes and random weights, made on the accelerator; the text is random tokens in documents of many
lengths. Everything else is what a job runs: the loop, its choice of where masters and moments lie, its micro-batch. Of
the model's operations only those count that the mathematics asks for: a forward pass of the teacher, a forward and a
backward pass of the student, attention within documents; not what is computed again to save memory.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

from benchmarks.random_models import random_rows
from foundry.engine.attention import attend_within_documents
from foundry.engine.compiled import compile_layers
from foundry.engine.context import RunContext
from foundry.engine.distill.learner import Learner
from foundry.engine.distill.means import learns_on_host
from foundry.engine.distill.memory import peak_bytes, total_bytes
from foundry.engine.distill.objectives import Goal, match_teacher
from foundry.engine.distill.schedule import make_schedule
from foundry.engine.distill.trainer import Training, train
from foundry.engine.documents import document_lengths
from foundry.engine.hardware import hardware_name
from foundry.engine.packed import Packed
from foundry.engine.workspace import Workspace
from foundry.spec.family import family_of
from foundry.spec.lifecycle import EventType, RunEvent

_TEACHER: dict[str, Any] = {
    "vocab_size": 131_072, "hidden_size": 5120, "intermediate_size": 14_336, "num_hidden_layers": 40,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "rope_theta": 1e6, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131_072, "sliding_window": None, "tie_word_embeddings": False,
}  # fmt: skip
_STUDENT = {"hidden_size": 4096, "intermediate_size": 11_520}
_PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 operations a second, from the makers' data sheets."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-rows", type=int, default=64, help="sequences of a step")
    parser.add_argument("--sequence-tokens", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=2, help="the first is a warm-up")
    parser.add_argument("--layers", type=int, default=40, help="fewer to try it out")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shrink", type=int, default=1, help="divide every width, to try it on a CPU")
    args = parser.parse_args()
    print(json.dumps(run(args)))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train; return the figures, also printed as they come."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = _Clock(device)
    context = RunContext(emit=clock.hear, device=device, dtype=torch.bfloat16, seed=args.seed)
    torch.manual_seed(args.seed)
    vocabulary = _TEACHER["vocab_size"] // args.shrink
    text = random_rows(vocabulary, args.batch_rows * args.steps, args.sequence_tokens, args.seed)
    teacher = _model(args, _TEACHER, device).eval()
    attend_within_documents(teacher, context.dtype)
    student = _model(args, _TEACHER | _STUDENT, device)
    parameters = student.num_parameters()
    on_host = learns_on_host("distill", parameters, context, loaded=True)
    clock.say(f"{teacher.num_parameters():,} -> {parameters:,} parameters; masters on host: {on_host}")
    learner = _Timed("student", student, context.dtype, on_host=on_host)
    clock.say("masters are there")
    if not args.eager:
        compile_layers(teacher)
        compile_layers(student)
    schedule = make_schedule(
        text, tokens=text.ids_NS.numel(), batch_tokens=args.batch_rows * args.sequence_tokens, peak_rate=1e-5,
        warmup_ratio=0.0, seed=args.seed,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        training = Training(
            stage="distill", schedule=schedule, text=text,
            held_out=random_rows(vocabulary, 1, args.sequence_tokens, args.seed + 1),
            objective=match_teacher(teacher, Goal(), context), checkpoint_steps=args.steps + 1,
            evaluate_steps=args.steps, digest="benchmark",
        )  # fmt: skip
        train([learner], training, Workspace(Path(folder)), context)
    step_s = clock.steps_s[-1]
    operations = _operations(teacher, student, text) / len(text) * args.batch_rows
    peak = next((rate for name, rate in _PEAKS.items() if name in hardware_name(device)), None)
    return {
        "hardware": hardware_name(device), "torch": torch.__version__, "compiled": not args.eager, "on_host": on_host,
        "step_tokens": schedule.batch_tokens, "step_s": step_s, "update_s": learner.update_s[-1],
        "tokens_per_s": schedule.batch_tokens / step_s, "operations_per_token": operations / schedule.batch_tokens,
        "share_of_peak": peak and operations / step_s / peak,
        "share_of_peak_without_update": peak and operations / (step_s - learner.update_s[-1]) / peak,
        "peak_device_bytes": peak_bytes(device), "device_bytes": total_bytes(device),
        "peak_host_bytes": peak_bytes(torch.device("cpu")), "losses": clock.losses,
    }  # fmt: skip


class _Timed(Learner):
    """Notes how long its updates take."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.update_s: list[float] = []

    def update(self, rate: float) -> float:
        _wait()
        started = time.monotonic()
        norm = super().update(rate)
        _wait()
        self.update_s.append(time.monotonic() - started)
        return norm


class _Clock:
    """What happened when."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._started = device, time.monotonic()
        self._last: float | None = None
        self.steps_s: list[float] = []
        self.losses: list[float] = []

    def say(self, message: str) -> None:
        _wait()
        held = torch.cuda.memory_allocated() / 1e9 if self._device.type == "cuda" else 0.0
        host = psutil.Process(os.getpid()).memory_info().rss / 1e9
        at = time.monotonic() - self._started
        print(f"{at:7.1f} s, {held:5.1f} GB on the device, {host:6.1f} GB here: {message}", flush=True)

    def hear(self, event: RunEvent) -> None:
        if event.type is not EventType.PROGRESS:
            self.say(event.message)
            self._last = time.monotonic()  # the first step begins behind the last message
            return
        _wait()
        now = time.monotonic()
        if self._last is not None:
            self.steps_s.append(now - self._last)
            self.say(f"a step in {now - self._last:.1f} s, loss {event.data['loss']:.4f}")
        self._last = time.monotonic()
        self.losses.append(float(event.data["loss"]))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _model(args: argparse.Namespace, shape: dict[str, Any], device: torch.device) -> PreTrainedModel:
    widths = ("vocab_size", "hidden_size", "intermediate_size", "head_dim")
    shrunk = {name: shape[name] // args.shrink for name in widths}
    config = MistralConfig(**(shape | shrunk | {"num_hidden_layers": args.layers}))
    with torch.device(device):
        return MistralForCausalLM._from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")


def _operations(teacher: PreTrainedModel, student: PreTrainedModel, text: Packed) -> float:
    """Multiplications and additions that a pass over the text asks for."""
    lengths = document_lengths(text.positions_NS)
    pairs = sum(length * (length + 1) / 2 for length in lengths)
    total = 0.0
    for model, passes in ((teacher, 1), (student, 3)):
        shape = family_of(model.config.to_dict()).shape_of(model.config.to_dict())
        matrices = model.num_parameters() - model.get_input_embeddings().weight.numel()
        attention = 2 * 2 * shape.layers * shape.heads * shape.head_dim * pairs
        total += passes * (2 * matrices * text.ids_NS.numel() + attention)
    return total


if __name__ == "__main__":
    main()
