"""Ways to distil one teacher into one student: ours, TRL's, and a plain loop, on the same rows in the same order.

Every way takes the same steps: AdamW (0.9, 0.95) with decay 0.1 on matrices, warm-up and cosine, gradients clipped at
1, forward KL over the same counted tokens. A step is timed in seconds of this process's CPU time, and the fastest
quarter of the steps counts, for other work on the machine slows a core down even so; the first step is left out.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from foundry.engine.attention import attend_within_documents
from foundry.engine.context import RunContext
from foundry.engine.distill.learner import Learner
from foundry.engine.distill.memory import peak_bytes
from foundry.engine.distill.objectives import Goal, match_saved, match_teacher
from foundry.engine.distill.schedule import Schedule
from foundry.engine.distill.signal import Origin, SavedSignal, text_sha256
from foundry.engine.distill.trainer import Training, train
from foundry.engine.evaluate.compare import compare
from foundry.engine.norms import fuse_norms
from foundry.engine.packed import Packed
from foundry.engine.workspace import Workspace
from foundry.spec.lifecycle import EventType, RunEvent

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every way of distilling is given."""

    teacher: PreTrainedModel
    student: PreTrainedModel
    text: Packed
    held_out: Packed
    schedule: Schedule


@dataclass(kw_only=True)
class Clock:
    """When each step ended, in CPU seconds, and what the process held before the first."""

    ends_s: list[float] = field(default_factory=list)
    before_s: float = 0.0
    """CPU seconds that the run took before its steps."""
    loaded_bytes: int = field(default_factory=lambda: int(psutil.Process().memory_info().rss))

    def tick(self) -> None:
        self.ends_s.append(time.process_time())

    @property
    def step_s(self) -> float:
        """CPU seconds of a step on a quiet core: the mean of the fastest quarter."""
        steps = sorted(after - before for before, after in pairwise(self.ends_s))
        fastest = steps[: max(1, len(steps) // 4)]
        return sum(fastest) / len(fastest)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One way's figures."""

    method: str
    tokens_per_cpu_s: float
    """Of text; each is learned by every student."""
    peak_bytes: int
    loaded_bytes: int
    """Held before the first step: libraries, teacher, student, text."""
    held_out_loss: float
    tokens: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measured(method: str, setting: Setting, clock: Clock, models: Sequence[PreTrainedModel]) -> Measured:
    """Turn a finished run into figures; held-out loss is the first model's."""
    tokens, steps, peak = setting.schedule.batch_tokens, setting.schedule.steps, peak_bytes(CPU)
    loss = compare(models[0].eval(), None, setting.held_out, new_context(lambda _: None)).held_out_loss
    return Measured(
        method=method, tokens_per_cpu_s=tokens / (clock.step_s + clock.before_s / steps),
        peak_bytes=peak, loaded_bytes=clock.loaded_bytes, held_out_loss=loss, tokens=tokens * steps,
    )  # fmt: skip


def new_context(emit: Callable[[RunEvent], None]) -> RunContext:
    """On the CPU in float32."""
    return RunContext(emit=emit, device=CPU, dtype=torch.float32, seed=0)


def ours(method: str, setting: Setting, *, students: int = 1, top_k: int | None = None, **options: Any) -> Measured:
    """The loop that a job runs. A saved signal's one pass over the text counts as part of the time."""
    clock = Clock()
    context = new_context(lambda event: clock.tick() if event.type is EventType.PROGRESS else None)
    attend_within_documents(setting.teacher, torch.float32)
    fuse_norms(setting.teacher)
    learners = [
        Learner(str(n), copy.deepcopy(setting.student), torch.float32, **options) for n in range(students)
    ]  # fmt: skip
    steps = setting.schedule.steps
    with tempfile.TemporaryDirectory() as folder:
        if top_k is None:
            objective = match_teacher(setting.teacher, Goal(), context)
        else:
            started_s = time.process_time()
            digest = text_sha256(setting.text)
            origin = Origin(teacher_sha256="", tokenizer_sha256="", text_sha256=digest, k=top_k, temperature=1.0)
            saved = SavedSignal(Path(folder) / "signal", origin, setting.text)
            saved.capture(setting.teacher, "distill", new_context(lambda _: None))
            clock.before_s = time.process_time() - started_s
            objective = match_saved(saved, Goal(), context)
        training = Training(
            stage="distill", schedule=setting.schedule, text=setting.text, held_out=_one_row(setting.held_out),
            objective=objective, checkpoint_steps=steps + 1, evaluate_steps=steps, digest="benchmark",
        )  # fmt: skip
        train(learners, training, Workspace(Path(folder)), context)
    return measured(method, setting, clock, [learner.model for learner in learners])


def plain(method: str, setting: Setting) -> Measured:
    """A loop as it is written by hand: whole logits, autograd, transformers' own masks."""
    clock = Clock()
    optimizer = _adamw(setting.student, setting.schedule.peak_rate)
    setting.student.train()
    for step in range(setting.schedule.steps):
        batch = setting.text.batch(setting.schedule.rows_of(step))
        with torch.no_grad():
            log_p = F.log_softmax(setting.teacher(**batch.model_inputs()).logits, dim=-1)
        log_q = F.log_softmax(setting.student(**batch.model_inputs()).logits, dim=-1)
        kl_BS = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=-1)
        (kl_BS[batch.targets_BS].sum() / batch.targets_BS.sum()).backward()
        torch.nn.utils.clip_grad_norm_(setting.student.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = setting.schedule.rate_at(step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.tick()
    return measured(method, setting, clock, [setting.student])


def trl(method: str, setting: Setting) -> Measured:
    """TRL's GKD trainer without sampling from the student. It reads a row as one document."""
    from transformers import TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    schedule = setting.schedule
    order = [row for step in range(schedule.steps) for row in schedule.rows_of(step)]

    class Ticking(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    class InOrder(GKDTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(rows)

    def collate(members: list[dict[str, int]]) -> dict[str, torch.Tensor]:
        batch = setting.text.batch([member["row"] for member in members])
        counted_BS = torch.zeros_like(batch.targets_BS)
        counted_BS[:, 1:] = batch.targets_BS[:, :-1]
        labels_BS = torch.where(counted_BS, batch.ids_BS, -100)
        return {"input_ids": batch.ids_BS, "attention_mask": torch.ones_like(batch.ids_BS), "labels": labels_BS}

    from datasets import Dataset

    rows = Dataset.from_dict({"row": order})
    optimizer = _adamw(setting.student, schedule.peak_rate)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.rate_at(step) / schedule.peak_rate)
    with tempfile.TemporaryDirectory() as folder:
        config = GKDConfig(
            output_dir=folder, per_device_train_batch_size=schedule.batch_rows, max_steps=schedule.steps, lmbda=0.0,
            beta=0.0, temperature=1.0, seq_kd=False, max_grad_norm=1.0, gradient_checkpointing=False, bf16=False,
            use_cpu=True, report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = InOrder(
            model=setting.student, teacher_model=setting.teacher, args=config, data_collator=collate,
            train_dataset=rows, processing_class=_tokenizer(), optimizers=(optimizer, rates), callbacks=[Ticking()],
        )  # fmt: skip
        clock = Clock()
        trainer.train()
    return measured(method, setting, clock, [setting.student])


def _one_row(packed: Packed) -> Packed:
    return Packed(packed.ids_NS[:1], packed.positions_NS[:1], packed.targets_NS[:1], bytes=1)


def _adamw(model: PreTrainedModel, rate: float) -> torch.optim.AdamW:
    """The same groups, decays and rates as ours."""
    embeddings = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    decayed = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in embeddings]
    others = [p for p in model.parameters() if p.ndim < 2 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)


def _tokenizer() -> Any:
    """TRL asks for one, though the rows are tokens already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"<pad>": 0}, "<pad>")), pad_token="<pad>")


def half_the_layers(teacher: PreTrainedModel) -> PreTrainedModel:
    """A student that needs no pruner: every second layer of the teacher."""
    student = copy.deepcopy(teacher).float()
    student.model.layers = student.model.layers[::2]
    for place, layer in enumerate(student.model.layers):
        layer.self_attn.layer_idx = place
    student.config.num_hidden_layers = len(student.model.layers)
    return student


def wide_vocabulary(hidden: int, seed: int, vocabulary: int = 131_072) -> PreTrainedModel:
    """Two small random layers under a large head: nearly all of the work and memory is the loss."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
        tie_word_embeddings=True, initializer_range=0.1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()
