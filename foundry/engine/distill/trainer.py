"""The one training loop: distillation, teacher correction and LoRA differ in their learners and their objective only.

One step is one update of every learner. What all learners share (the batch, the teacher's hidden states) is made once.
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
from foundry.engine.corpus import Batch, Packed
from foundry.engine.distill import checkpoints
from foundry.engine.distill.learner import Learner, Score
from foundry.engine.distill.memory import is_out_of_memory, micro_batch_rows
from foundry.engine.distill.schedule import Schedule
from foundry.engine.evaluate.compare import compare
from foundry.engine.products import inner_dtype
from foundry.engine.workspace import Workspace
from foundry.errors import Diverged, OutOfMemory
from foundry.spec.lifecycle import EventType, Progress, StageName

Objective = Callable[[Batch, float], Score]
"""Does once per micro-batch what all learners share, then scores each of them; losses are multiplied by the number."""

_HISTORY_ROWS = 1000
_SPEED_STEPS = 20


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


History = dict[str, Any]
"""`steps`, `tokens`, `batch_tokens`, `sequence_tokens`, `epochs`, and `rows` of step, tokens, loss, held_out_loss."""


def train(
    learners: Sequence[Learner], training: Training, workspace: Workspace, context: RunContext
) -> dict[str, History]:
    """Run to the last step from the newest checkpoint; return each learner's history by name.

    Raises `Stopped` with a checkpoint written, `Diverged` with the last good one kept, or `OutOfMemory`.
    """
    keep_freed_memory()
    loop = _Loop(learners, training, workspace, context)
    try:
        with inner_dtype(context.dtype, context.device):
            loop.run()
    except Stopped:
        loop.save_if_ahead()
        raise
    return {learner.name: loop.history(learner.name) for learner in learners}


def summary(history: History) -> dict[str, object]:
    """What an event and the model card say of a run: steps, tokens, and held-out loss before and after."""
    held_out = [row["held_out_loss"] for row in history["rows"] if "held_out_loss" in row]
    kept = {key: history[key] for key in ("steps", "tokens", "batch_tokens", "sequence_tokens", "epochs")}
    return {**kept, "held_out_loss_before": held_out[0], "held_out_loss_after": held_out[-1]}


class _Loop:
    def __init__(
        self, learners: Sequence[Learner], training: Training, workspace: Workspace, context: RunContext
    ) -> None:
        self._learners, self._training, self._workspace, self._context = learners, training, workspace, context
        self.done, progress = checkpoints.restore(workspace, training.stage, learners, training.digest, context)
        self._saved = self.done
        models = [learner.model for learner in learners]
        fitting = micro_batch_rows(models, training.schedule.sequence_tokens, context.device)
        self._micro_rows = int(progress.get("micro_rows", min(fitting, training.schedule.batch_rows)))
        self._rows: dict[str, list[dict[str, float]]] = progress.get("rows") or {
            learner.name: [] for learner in learners
        }
        self._seconds: deque[float] = deque(maxlen=_SPEED_STEPS)
        self._started, self._first = time.monotonic(), self.done

    def run(self) -> None:
        schedule = self._training.schedule
        while True:
            self._evaluate_when_due()
            if self.done == schedule.steps:
                return
            start = time.monotonic()
            losses = self._step()
            self._seconds.append(time.monotonic() - start)
            self._record(losses)
            self._report(losses)
            if self.done % self._training.checkpoint_steps == 0 and self.done < schedule.steps:
                self.save_if_ahead()

    def _step(self) -> list[float]:
        """One update of every learner; returns their losses."""
        schedule, step = self._training.schedule, self.done
        while True:
            # Dropout must not depend on where the run was interrupted.
            torch.manual_seed(schedule.seed * 1_000_003 + step)
            try:
                losses = self._accumulate(schedule.rows_of(step))
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve_micro_batch(error)
        rate = schedule.rate_at(step)
        for learner, loss in zip(self._learners, losses, strict=True):
            norm = learner.update(rate) if math.isfinite(loss) else math.nan
            if not math.isfinite(norm):
                raise self._diverged(learner.name, loss, rate)
        self.done += 1
        return losses

    def _accumulate(self, rows: Sequence[int]) -> list[float]:
        """Gradients of the whole batch in every learner; each loss is the mean over the batch's counted tokens."""
        losses = [0.0] * len(self._learners)
        counted = int(self._training.text.targets_NS[torch.as_tensor(rows)].sum())
        for start in range(0, len(rows), self._micro_rows):
            if self._context.should_stop():
                self._forget()
                raise Stopped
            batch = self._training.text.batch(rows[start : start + self._micro_rows], self._context.device)
            score = self._training.objective(batch, 1 / max(1, counted))
            for index, learner in enumerate(self._learners):
                losses[index] += learner.accumulate(batch, score)
        return losses

    def _halve_micro_batch(self, error: Exception) -> None:
        self._forget()
        length = self._training.schedule.sequence_tokens
        if self._micro_rows == 1:
            raise OutOfMemory(
                f"{self._training.stage}: one sequence of {length} tokens does not fit into the memory of "
                f"{self._context.device}; choose shorter sequences (distill.sequence_tokens) or a machine with more"
            ) from error
        self._micro_rows = (self._micro_rows + 1) // 2
        if self._context.device.type == "cuda":
            torch.cuda.empty_cache()
        message = f"out of memory; going on with {self._micro_rows} sequences at a time"
        self._context.report(EventType.WARNING, message, level="warning", stage=self._training.stage)

    def _diverged(self, name: str, loss: float, rate: float) -> Diverged:
        stage = self._training.stage
        kept = f"the checkpoint of step {self._saved} is kept" if self._saved else "there is no checkpoint yet"
        what = f"loss is {loss}" if not math.isfinite(loss) else "gradient is not a number"
        return Diverged(
            f"{stage}: the {what} for {name!r} at step {self.done + 1} with a learning rate of {rate:.3g}; {kept}. "
            f"Lower {stage}.learning_rate (it peaks at {self._training.schedule.peak_rate:.3g}) or clean the data",
            pointer=f"/{stage}/learning_rate",
        )

    def _forget(self) -> None:
        for learner in self._learners:
            learner.forget()

    def _evaluate_when_due(self) -> None:
        """The held-out loss of every learner at step 0, at every `evaluate_steps` and at the end."""
        due = self.done % self._training.evaluate_steps == 0 or self.done == self._training.schedule.steps
        if not due or self._last("held_out_loss", "step") == self.done:
            return
        tokens = self.done * self._training.schedule.batch_tokens
        found = []
        for learner in self._learners:
            learner.model.eval()
            found.append(compare(learner.model, None, self._training.held_out, self._context).held_out_loss)
            learner.model.train()
        for learner, loss in zip(self._learners, found, strict=True):
            self._rows[learner.name].append({"step": self.done, "tokens": tokens, "held_out_loss": loss})

    def _record(self, losses: Sequence[float]) -> None:
        schedule = self._training.schedule
        if self.done % max(1, schedule.steps // _HISTORY_ROWS) and self.done != schedule.steps:
            return
        tokens, rate = self.done * schedule.batch_tokens, schedule.rate_at(self.done - 1)
        for learner, loss in zip(self._learners, losses, strict=True):
            row = {"step": self.done, "tokens": tokens, "loss": loss, "learning_rate": rate}
            self._rows[learner.name].append(row)

    def _report(self, losses: Sequence[float]) -> None:
        schedule = self._training.schedule
        elapsed = time.monotonic() - self._started
        self._context.progress(
            Progress(
                stage=self._training.stage, step=self.done, steps=schedule.steps, loss=sum(losses) / len(losses),
                held_out_loss=self._last("held_out_loss", "held_out_loss"),
                tokens_per_s=schedule.batch_tokens * len(self._seconds) / max(1e-9, sum(self._seconds)),
                left_s=elapsed / (self.done - self._first) * (schedule.steps - self.done),
            )
        )  # fmt: skip

    def _last(self, holding: str, key: str) -> float | None:
        """`key` of the newest history rows that hold a value, averaged over the learners."""
        values = [next((r[key] for r in reversed(rows) if holding in r), None) for rows in self._rows.values()]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    def save_if_ahead(self) -> None:
        """Write a checkpoint unless the newest one is of this very step."""
        if self.done == self._saved:
            return
        progress = {"rows": self._rows, "micro_rows": self._micro_rows}
        training = self._training
        checkpoints.save(
            self._workspace, training.stage, self.done, self._learners, training.digest, progress, self._context
        )
        self._saved = self.done

    def history(self, name: str) -> History:
        schedule = self._training.schedule
        return {
            "steps": schedule.steps, "tokens": schedule.steps * schedule.batch_tokens,
            "batch_tokens": schedule.batch_tokens, "sequence_tokens": schedule.sequence_tokens,
            "epochs": schedule.epochs, "rows": self._rows[name],
        }  # fmt: skip
