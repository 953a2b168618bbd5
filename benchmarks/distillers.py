"""Ways to distil one teacher into one student: ours, TRL's, and loops by hand, on the same rows in the same order.

Every way takes the same steps: AdamW (0.9, 0.95) with decay 0.1 on matrices, warm-up and cosine, gradients clipped at
1, forward KL over the same counted tokens. On a CPU a step is timed in seconds of this process's CPU time, and the
fastest quarter of the steps counts, for other work on the machine slows a core down even so; the first step is left
out. On a GPU it is the wall time between two moments at which nothing is left to do, and the median counts, the steps
that warm up left out. Products run in bfloat16 there, and on a CPU when asked to: ours as a job does it, the others
from float32 weights under autocast, with the teacher in bfloat16.

B: rows, S: tokens of a row, V: vocabulary.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from foundry.engine.attention import attend_within_documents
from foundry.engine.compiled import compile_layers
from foundry.engine.context import RunContext
from foundry.engine.distill.learner import Learner
from foundry.engine.distill.memory import peak_bytes
from foundry.engine.distill.objectives import Goal, match_saved, match_teacher
from foundry.engine.distill.schedule import Schedule
from foundry.engine.distill.signal import Origin, SavedSignal, text_sha256
from foundry.engine.distill.trainer import Training, train
from foundry.engine.documents import document_lengths
from foundry.engine.evaluate.compare import compare
from foundry.engine.norms import fuse_norms
from foundry.engine.packed import Batch, Packed
from foundry.engine.workspace import Workspace
from foundry.spec.lifecycle import EventType, RunEvent

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every way of distilling is given."""

    teacher: PreTrainedModel
    student: PreTrainedModel
    """Its weights in float32."""
    text: Packed
    held_out: Packed
    schedule: Schedule
    rows_at_a_time: int | None = None
    """Of the ways that do not find it for themselves; None: all rows of a step."""
    warm_up_steps: int = 1
    """The first steps, which are not timed."""
    dtype: torch.dtype = torch.float32
    """Of matrix products."""
    measures_kl: bool = False
    """Whether the student is also compared with its teacher: random tokens teach nothing else."""

    @property
    def device(self) -> torch.device:
        return self.teacher.device


@dataclass(kw_only=True)
class Clock:
    """When each step ended, in seconds, and what was held before the first."""

    device: torch.device = CPU
    warm_up_steps: int = 1
    ends_s: list[float] = field(default_factory=list)
    before_s: float = 0.0
    """Seconds that the run took before its steps."""
    loaded_bytes: int = field(init=False)
    """By the process, or by the GPU's allocator."""

    def __post_init__(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.loaded_bytes = torch.cuda.memory_allocated(self.device)
        else:
            self.loaded_bytes = int(psutil.Process().memory_info().rss)

    def now_s(self) -> float:
        """CPU seconds of this process; beside a GPU seconds of the wall, when it has done all it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()

    def tick(self) -> None:
        self.ends_s.append(self.now_s())

    @property
    def step_s(self) -> float:
        """Seconds of a step: on a GPU the median, else the mean of the fastest quarter, as on a quiet core."""
        steps = sorted(after - before for before, after in pairwise(self.ends_s[self.warm_up_steps - 1 :]))
        if self.device.type == "cuda":
            return median(steps)
        fastest = steps[: max(1, len(steps) // 4)]
        return sum(fastest) / len(fastest)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One way's figures."""

    method: str
    tokens_per_s: float
    """Of text, by `Clock`; each is learned by every student."""
    peak_bytes: int
    loaded_bytes: int
    """Held before the first step: teacher, student, and of a process's memory also libraries and text."""
    held_out_loss: float
    kl_to_teacher: float | None
    tokens: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def clock_of(setting: Setting) -> Clock:
    """A clock for this setting's device."""
    return Clock(device=setting.device, warm_up_steps=setting.warm_up_steps)


def measured(method: str, setting: Setting, clock: Clock, models: Sequence[PreTrainedModel]) -> Measured:
    """Turn a finished run into figures; held-out loss is the first model's."""
    tokens, steps, peak = setting.schedule.batch_tokens, setting.schedule.steps, peak_bytes(setting.device)
    teacher = setting.teacher if setting.measures_kl else None
    with torch.compiler.set_stance("force_eager"):  # compiled layers would be compiled anew for rows of this number
        found = compare(models[0].eval(), teacher, setting.held_out, new_context(lambda _: None, setting))
    return Measured(
        method=method, tokens_per_s=tokens / (clock.step_s + clock.before_s / steps), peak_bytes=peak,
        loaded_bytes=clock.loaded_bytes, held_out_loss=found.held_out_loss, kl_to_teacher=found.kl_to_teacher,
        tokens=tokens * steps,
    )  # fmt: skip


def new_context(emit: Callable[[RunEvent], None], setting: Setting) -> RunContext:
    """On the setting's device."""
    return RunContext(emit=emit, device=setting.device, dtype=setting.dtype, seed=0)


def ours(
    method: str, setting: Setting, *, students: int = 1, top_k: int | None = None, compiles: bool = False,
    **options: Any,
) -> Measured:  # fmt: skip
    """The loop that a job runs. A saved signal's one pass over the text counts as part of the time."""
    setting.student.to(setting.dtype)  # float32 masters stand behind it
    clock = clock_of(setting)
    context = new_context(lambda event: clock.tick() if event.type is EventType.PROGRESS else None, setting)
    attend_within_documents(setting.teacher, setting.dtype)
    fuse_norms(setting.teacher)
    copies = [copy.deepcopy(setting.student) for _ in range(students - 1)]
    learners = [Learner(str(n), model, setting.dtype, **options) for n, model in enumerate([setting.student, *copies])]
    for model in (setting.teacher, *(learner.model for learner in learners)) if compiles else ():
        compile_layers(model)
    steps = setting.schedule.steps
    with tempfile.TemporaryDirectory() as folder:
        if top_k is None:
            objective = match_teacher(setting.teacher, Goal(), context)
        else:
            started_s = clock.now_s()
            digest = text_sha256(setting.text)
            origin = Origin(teacher_sha256="", tokenizer_sha256="", text_sha256=digest, k=top_k, temperature=1.0)
            saved = SavedSignal(Path(folder) / "signal", origin, setting.text)
            saved.capture(setting.teacher, "distill", new_context(lambda _: None, setting))
            clock.before_s = clock.now_s() - started_s
            objective = match_saved(saved, Goal(), context)
        training = Training(
            stage="distill", schedule=setting.schedule, text=setting.text, held_out=_one_row(setting.held_out),
            objective=objective, checkpoint_steps=steps + 1, evaluate_steps=steps, digest="benchmark",
        )  # fmt: skip
        train(learners, training, Workspace(Path(folder)), context)
    return measured(method, setting, clock, [learner.model for learner in learners])


def plain(method: str, setting: Setting) -> Measured:
    """A loop as it is written by hand: whole logits, autograd, transformers' own masks."""

    def summed(batch: Batch) -> Tensor:
        with torch.no_grad():
            log_p = F.log_softmax(setting.teacher(**batch.model_inputs()).logits, dim=-1)
        log_q = F.log_softmax(setting.student(**batch.model_inputs()).logits, dim=-1)
        kl_BS = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=-1)
        return kl_BS[batch.targets_BS].sum()

    return _by_hand(method, setting, summed)


def liger(method: str, setting: Setting) -> Measured:
    """The loop by hand with Liger's loss, which takes both heads and a thousand tokens at a time."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    # Its JSD at beta 0 is the forward KL.
    fused = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=setting.device.type == "cuda"
    )
    trunk, head = setting.student.base_model, setting.student.get_output_embeddings()
    teacher_trunk, teacher_head = setting.teacher.base_model, setting.teacher.get_output_embeddings()

    def summed(batch: Batch) -> Tensor:
        with torch.no_grad():
            theirs_BSG = teacher_trunk(**batch.model_inputs()).last_hidden_state
        mine_BSH = trunk(**batch.model_inputs()).last_hidden_state
        labels_BS = torch.where(batch.targets_BS, batch.labels_BS, -100)
        mean: Tensor = fused(
            mine_BSH.flatten(0, 1), head.weight, theirs_BSG.flatten(0, 1), teacher_head.weight, labels_BS.flatten()
        )
        return mean * batch.targets_BS.sum()

    return _by_hand(method, setting, summed)


def _by_hand(method: str, setting: Setting, summed: Callable[[Batch], Tensor]) -> Measured:
    """A loop around a loss summed over the counted tokens of a batch."""
    clock = clock_of(setting)
    optimizer = _adamw(setting.student, setting.schedule.peak_rate)
    setting.student.train()
    at_a_time = setting.rows_at_a_time or setting.schedule.batch_rows
    for step in range(setting.schedule.steps):
        rows = setting.schedule.rows_of(step)
        counted = setting.text.targets_NS[torch.as_tensor(rows)].sum().item()
        for start in range(0, len(rows), at_a_time):
            batch = setting.text.batch(rows[start : start + at_a_time], setting.device)
            with torch.autocast(setting.device.type, setting.dtype, enabled=setting.dtype != torch.float32):
                loss = summed(batch)
            (loss / counted).backward()
        torch.nn.utils.clip_grad_norm_(setting.student.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = setting.schedule.rate_at(step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.tick()
    return measured(method, setting, clock, [setting.student])


def trl(method: str, setting: Setting, *, apart: bool = False) -> Measured:
    """TRL's GKD trainer without sampling from the student. It reads a row as one document.

    So it is given rows of many documents, which then see each other; or with `apart` every document as a row, padded,
    as a user of TRL gives them.
    """
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
        read = {"input_ids": batch.ids_BS, "attention_mask": torch.ones_like(batch.ids_BS), "labels": labels_BS}
        if not apart:
            return read
        lengths = document_lengths(batch.positions_BS)
        fills = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        return {
            name: pad_sequence(tensor.flatten().split(lengths), batch_first=True, padding_value=fills[name])
            for name, tensor in read.items()
        }

    from datasets import Dataset

    rows = Dataset.from_dict({"row": order})
    optimizer = _adamw(setting.student, schedule.peak_rate)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.rate_at(step) / schedule.peak_rate)
    at_a_time = setting.rows_at_a_time or schedule.batch_rows
    with tempfile.TemporaryDirectory() as folder:
        config = GKDConfig(
            output_dir=folder, per_device_train_batch_size=at_a_time, max_steps=schedule.steps, lmbda=0.0,
            gradient_accumulation_steps=schedule.batch_rows // at_a_time, beta=0.0, temperature=1.0, seq_kd=False,
            max_grad_norm=1.0, gradient_checkpointing=False, bf16=setting.dtype == torch.bfloat16,
            use_cpu=setting.device.type == "cpu", report_to="none", save_strategy="no", logging_strategy="no",
            disable_tqdm=True,
        )  # fmt: skip
        trainer = InOrder(
            model=setting.student, teacher_model=setting.teacher, args=config, data_collator=collate,
            train_dataset=rows, processing_class=_tokenizer(), optimizers=(optimizer, rates), callbacks=[Ticking()],
        )  # fmt: skip
        clock = clock_of(setting)
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
