"""The one training loop: distillation, teacher correction and LoRA differ in their learners and their objective only.

One step is one update of every learner. What all learners share (the batch, the teacher's signal) is made once.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from foundry.engine.allocator import keep_freed_memory
from foundry.engine.context import RunContext, Stopped
from foundry.engine.distill import checkpoints
from foundry.engine.distill.learner import Learner, Lesson
from foundry.engine.distill.logbook import Logbook
from foundry.engine.distill.memory import Fit, is_out_of_memory, micro_batch_rows, peak_bytes
from foundry.engine.distill.parallel import ALONE, Ranks
from foundry.engine.distill.schedule import Schedule
from foundry.engine.evaluate.compare import compare
from foundry.engine.packed import Batch, Packed
from foundry.engine.products import inner_dtype
from foundry.engine.workspace import Workspace
from foundry.errors import Diverged, OutOfMemory
from foundry.spec.lifecycle import EventType, Progress, StageName

Objective = Callable[[Batch, float], Lesson]
"""Does once per micro-batch what all learners share; losses are multiplied by the number."""

_SPEED_STEPS = 20
_TIMED_STEPS = 10
"""After so many the time of a step is known well enough to fit the run to a budget of time."""
_OVERRUN = 1.1
"""Later the budget may be missed by this much before the run is shortened again: each time bends the learning rate."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """All that the loop must know beside its learners."""

    stage: StageName
    schedule: Schedule
    text: Packed
    held_out: Packed
    objective: Objective
    checkpoint_steps: int
    evaluate_steps: int
    digest: str
    """Of everything the result depends on; checkpoints with another are not resumed."""
    patience_looks: int | None = None
    """Stop when no learner's held-out loss has fallen for so many looks; ship the weights of each learner's best."""
    time_budget_s: float | None = None


History = dict[str, Any]
"""`steps`, `tokens`, `batch_tokens`, `sequence_tokens`, `epochs`, `ended_by` (tokens, time or patience), `shipped_step`
and `rows` of step, tokens, loss, held_out_loss."""


def train(
    learners: Sequence[Learner], training: Training, workspace: Workspace, context: RunContext, ranks: Ranks = ALONE
) -> dict[str, History]:
    """Run to the end from the newest checkpoint; return each learner's history by name, its model ready to be shipped.

    Of several `ranks` each calls this; `context.should_stop` must answer all of them alike.
    Raises `Stopped` with a checkpoint written, `Diverged` with the last good one kept, or `OutOfMemory`.
    """
    keep_freed_memory()
    loop = _Loop(learners, training, workspace, context, ranks)
    try:
        with inner_dtype(context.dtype, context.device):
            loop.run()
    except Stopped:
        loop.save_if_ahead()
        raise
    return {learner.name: loop.settle(learner) for learner in learners}


def summary(history: History) -> dict[str, Any]:
    """What an event and the model card say of a run: steps, tokens, and held-out loss before and after."""
    held_out = {row["step"]: row["held_out_loss"] for row in history["rows"] if "held_out_loss" in row}
    kept = {key: history[key] for key in ("steps", "tokens", "batch_tokens", "sequence_tokens", "epochs", "ended_by")}
    return {**kept, "held_out_loss_before": held_out[0], "held_out_loss_after": held_out[history["shipped_step"]]}


class _Loop:
    def __init__(
        self, learners: Sequence[Learner], training: Training, workspace: Workspace, context: RunContext, ranks: Ranks
    ) -> None:
        self._learners, self._training, self._workspace, self._context = learners, training, workspace, context
        self._ranks = ranks
        # Before anything is restored: what fits must not depend on where a run was interrupted.
        fit = micro_batch_rows(learners, training.text, context.device)
        self.done, progress = checkpoints.restore(workspace, training.stage, learners, training.digest, context, ranks)
        self._saved = self.done
        schedule = training.schedule
        self._schedule = schedule.shortened(int(progress.get("steps", schedule.steps)))
        self._micro_rows = self._fitting_rows(fit, progress.get("micro_rows"))
        self._log = Logbook([learner.name for learner in learners], progress)
        self._seconds: deque[float] = deque(maxlen=_SPEED_STEPS)
        self._started = time.monotonic() - progress.get("elapsed_s", 0.0)

    def _fitting_rows(self, fit: Fit, saved: int | None) -> int:
        """As many rows at a time as a run before took, else as many as fit; never more than a cap allows."""
        workspace, stage, ranks = self._workspace, self._training.stage, self._ranks
        most = math.ceil(self._schedule.batch_rows / ranks.size)
        fitting = max(1, min(fit.rows, most) // self._context.micro_batch_divisor)
        wanted = saved or workspace.micro_batch_rows(stage) or fitting
        rows = int(ranks.first_says(min(wanted, workspace.micro_batch_cap or fitting, fitting)))
        if ranks.is_first:
            workspace.note_micro_batch(stage, rows)
        message = (
            f"{stage}: {rows} of {most} sequences of a step at a time; one keeps {fit.row_bytes / 2**20:,.1f} MiB for "
            f"its backward pass, and {fit.budget_bytes / 2**20:,.0f} MiB are there for that"
        )
        self._context.report(
            EventType.LOG, message, stage=stage, micro_batch_rows=rows, batch_rows=self._schedule.batch_rows
        )
        return rows

    def run(self) -> None:
        while True:
            self._look_when_due()
            if self.done == self._schedule.steps or self._is_out_of_patience():
                return
            start = time.monotonic()
            losses = self._step()
            self._seconds.append(time.monotonic() - start)
            self._log.add_step(self._schedule, self.done, losses)
            if (name := self._log.diverged) is not None:
                loss = losses[[learner.name for learner in self._learners].index(name)]
                why = f"loss is {loss:.2f}, far above the {self._log.lowest(name):.2f} that it had been down to,"
                raise self._diverged(name, why, self.done)
            self._fit_to_time()
            self._report(losses)
            due = self.done % self._training.checkpoint_steps == 0 and self.done < self._schedule.steps
            if due:
                self.save_if_ahead()

    def _step(self) -> list[float]:
        """One update of every learner; returns their losses."""
        schedule, step = self._schedule, self.done
        while True:
            # Dropout must not depend on where the run was interrupted.
            torch.manual_seed(schedule.seed * 1_000_003 + step)
            try:
                losses = self._accumulate(schedule.rows_of(step))
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                # The others wait for this one within a layer: only a new start helps.
                if self._ranks.size > 1 or self._micro_rows == 1:
                    raise self._too_little_memory() from error
            self._halve_micro_batch()  # out of the handler, which holds on to the failed pass
        rate = schedule.rate_at(step)
        for learner, loss in zip(self._learners, losses, strict=True):
            norm = learner.update(rate) if math.isfinite(loss) else math.nan
            if not math.isfinite(norm):
                why = f"loss is {loss}" if not math.isfinite(loss) else "gradient is not a number"
                raise self._diverged(learner.name, why, step + 1)
        self.done += 1
        return losses

    def _accumulate(self, rows: Sequence[int]) -> list[float]:
        """Gradients of the whole batch in every learner; each loss is the mean over the batch's counted tokens."""
        losses = [0.0] * len(self._learners)
        counted = int(self._training.text.targets_NS[torch.as_tensor(rows)].sum())
        mine = self._ranks.of_rows(rows)
        for start in range(0, math.ceil(len(rows) / self._ranks.size), self._micro_rows):
            if self._context.should_stop():
                self._forget()
                raise Stopped
            # A process that has no row left must take part all the same, with a row that counts for nothing.
            taken = mine[start : start + self._micro_rows]
            batch = self._training.text.batch(taken or rows[:1], self._context.device)
            lesson = self._training.objective(batch, self._ranks.size / max(1, counted) if taken else 0.0)
            for index, learner in enumerate(self._learners):
                losses[index] += learner.accumulate(batch, lesson)
        return self._ranks.averaged(losses)

    def _halve_micro_batch(self) -> None:
        self._forget()
        self._micro_rows = (self._micro_rows + 1) // 2
        self._workspace.note_micro_batch(self._training.stage, self._micro_rows)
        if self._context.device.type == "cuda":
            torch.cuda.empty_cache()
        message = f"out of memory; going on with {self._micro_rows} sequences at a time"
        self._context.report(EventType.WARNING, message, level="warning", stage=self._training.stage)

    def _too_little_memory(self) -> OutOfMemory:
        rows, length = self._micro_rows, self._schedule.sequence_tokens
        many = "one sequence does" if rows == 1 else f"{rows} sequences at a time do"
        return OutOfMemory(
            f"{self._training.stage}: {many} not fit into the memory of {self._context.device}, each {length} tokens "
            "long; choose shorter sequences (distill.sequence_tokens) or a machine with more"
        )

    def _diverged(self, name: str, why: str, step: int) -> Diverged:
        stage, rate = self._training.stage, self._schedule.rate_at(step - 1)
        kept = f"the checkpoint of step {self._saved} is kept" if self._saved else "there is no checkpoint yet"
        return Diverged(
            f"{stage}: the {why} for {name!r} at step {step} with a learning rate of {rate:.3g}; {kept}. "
            f"Lower {stage}.learning_rate (it peaks at {self._schedule.peak_rate:.3g}) or clean the data",
            pointer=f"/{stage}/learning_rate",
        )

    def _forget(self) -> None:
        for learner in self._learners:
            learner.forget()

    def _look_when_due(self) -> None:
        """The held-out loss of every learner at step 0, at every `evaluate_steps` and at the end."""
        due = self.done % self._training.evaluate_steps == 0 or self.done == self._schedule.steps
        if not due or self._log.last("held_out_loss", "step") == self.done:
            return
        found = []
        for learner in self._learners:
            with learner.as_shipped():
                found.append(compare(learner.model, None, self._training.held_out, self._context).held_out_loss)
        self._log.add_look(self._schedule, self.done, found)
        for learner in self._learners:
            if self._log.best_look(learner.name) == self.done:
                learner.remember()

    def _is_out_of_patience(self) -> bool:
        patience = self._training.patience_looks
        return patience is not None and self._log.looks_without_gain() >= patience

    def _fit_to_time(self) -> None:
        """Take as many steps as the budget of time admits: once they are timed, and at a look when they got slower.

        The number stands in the checkpoints, so a resumed run takes as many as the interrupted one would have.
        """
        budget_s, done, steps = self._training.time_budget_s, self.done, self._schedule.steps
        if budget_s is None or (done != _TIMED_STEPS and done % self._training.evaluate_steps):
            return
        elapsed_s = self._ranks.first_says(time.monotonic() - self._started)
        step_s = elapsed_s / done
        if elapsed_s + (steps - done) * step_s <= budget_s * (1 if done == _TIMED_STEPS else _OVERRUN):
            return
        fitting = min(steps, done + max(0, int((budget_s - elapsed_s) / step_s)))
        message = f"{self._training.stage}: {fitting:,} steps instead of {steps:,} fit into {budget_s:,.0f} seconds"
        self._context.report(EventType.LOG, message, stage=self._training.stage, steps=fitting)
        self._schedule = self._training.schedule.shortened(fitting)

    def _report(self, losses: Sequence[float]) -> None:
        schedule, step_s = self._schedule, sum(self._seconds) / len(self._seconds)
        self._context.progress(
            Progress(
                stage=self._training.stage, step=self.done, steps=schedule.steps, loss=sum(losses) / len(losses),
                held_out_loss=self._log.last("held_out_loss", "held_out_loss"),
                tokens_per_s=schedule.batch_tokens / max(1e-9, step_s),
                memory_bytes=peak_bytes(self._context.device), left_s=step_s * (schedule.steps - self.done),
            )
        )  # fmt: skip

    def save_if_ahead(self) -> None:
        """Write a checkpoint unless the newest one is of this very step, or the loss says that the run goes wrong."""
        if self.done == self._saved or not self._log.is_sound:
            return
        progress = self._log.saved() | {
            "micro_rows": self._micro_rows, "steps": self._schedule.steps,
            "elapsed_s": time.monotonic() - self._started,
        }  # fmt: skip
        training = self._training
        checkpoints.save(
            self._workspace, training.stage, self.done, self._learners, training.digest, progress, self._context,
            self._ranks,
        )  # fmt: skip
        self._saved = self.done

    def settle(self, learner: Learner) -> History:
        """Give the learner the weights that are shipped, and tell its history."""
        schedule, training = self._schedule, self._training
        learner.settle()
        ended_by = "tokens" if schedule.steps == training.schedule.steps else "time"
        return {
            "steps": self.done, "tokens": self.done * schedule.batch_tokens,
            "batch_tokens": schedule.batch_tokens, "sequence_tokens": schedule.sequence_tokens,
            "epochs": self.done * schedule.batch_rows / schedule.rows,
            "ended_by": "patience" if self.done < schedule.steps else ended_by,
            "shipped_step": self.done if training.patience_looks is None else self._log.best_look(learner.name),
            "rows": self._log.rows[learner.name],
        }  # fmt: skip
