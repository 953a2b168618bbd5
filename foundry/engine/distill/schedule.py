"""What happens at which step: a pure function of the seed and the number of the step, so a run can resume anywhere."""

import math
import random
from dataclasses import dataclass, replace
from functools import lru_cache

from foundry.engine.packed import Packed
from foundry.errors import FieldProblem, InvalidSpec
from foundry.spec.stages import Decay, Wsd

LONGEST_SEQUENCE = 2048
_DEFAULT_ROWS = 16
_FEWEST_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The steps of one training run."""

    steps: int
    batch_rows: int
    sequence_tokens: int
    peak_rate: float
    warmup_steps: int
    rows: int
    """Rows of the packed training text; the order is new in every epoch."""
    seed: int
    decay: Decay = "cosine"

    @property
    def batch_tokens(self) -> int:
        return self.batch_rows * self.sequence_tokens

    @property
    def epochs(self) -> float:
        """How often the run reads its text."""
        return self.steps * self.batch_rows / self.rows

    def rate_at(self, step: int) -> float:
        """Linear warm-up, then down to zero: along a cosine, or held first and then along 1 - sqrt.

        `step` counts from 0. The shape of the last part is that of Hägele et al. (2405.18392, section 3).
        """
        if step < self.warmup_steps:
            return self.peak_rate * (step + 1) / (self.warmup_steps + 1)
        if isinstance(self.decay, Wsd):
            held = self.steps - max(1, round(self.decay.decay_ratio * self.steps))
            return self.peak_rate * (1 - math.sqrt(max(0, step - held) / (self.steps - held)))
        share = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.peak_rate * (1 + math.cos(math.pi * share)) / 2

    def shortened(self, steps: int) -> "Schedule":
        """The same run in fewer steps: warm-up and decay take their old shares of it."""
        return replace(self, steps=steps, warmup_steps=self.warmup_steps * steps // self.steps)

    def rows_of(self, step: int) -> list[int]:
        """The rows of a step's batch: consecutive in the endless sequence of shuffled epochs."""
        places = range(step * self.batch_rows, (step + 1) * self.batch_rows)
        return [_shuffled(self.rows, self.seed, place // self.rows)[place % self.rows] for place in places]


@lru_cache(maxsize=2)
def _shuffled(rows: int, seed: int, epoch: int) -> list[int]:
    order = list(range(rows))
    random.Random(f"epoch:{seed}:{epoch}").shuffle(order)
    return order


def sequence_length(wanted: int | None, context_limit: int | None, pointer: str) -> int:
    """The length of packed sequences; raise `InvalidSpec` when the teacher cannot read that much."""
    limit = context_limit or LONGEST_SEQUENCE
    if wanted is not None and wanted > limit:
        detail = f"{wanted} is longer than the teacher's context of {limit} tokens; give at most {limit}"
        raise InvalidSpec([FieldProblem(pointer=pointer, code="too_long", detail=detail)])
    return wanted or min(limit, LONGEST_SEQUENCE)


def make_schedule(
    packed: Packed, *, tokens: int, batch_tokens: int | None, peak_rate: float, warmup_ratio: float, seed: int,
    decay: Decay = "cosine",
) -> Schedule:  # fmt: skip
    """Fit the steps to the text and the budget of tokens.

    A batch is 16 rows unless told otherwise, fewer where that leaves fewer than 100 steps, and never more than the
    text has: a row twice in one batch teaches nothing. At least one step.
    """
    length = packed.sequence_tokens
    rows = (
        max(1, batch_tokens // length)
        if batch_tokens
        else min(_DEFAULT_ROWS, max(1, tokens // (_FEWEST_STEPS * length)))
    )
    rows = min(rows, len(packed))
    steps = max(1, tokens // (rows * length))
    return Schedule(
        steps=steps, batch_rows=rows, sequence_tokens=length, peak_rate=peak_rate,
        warmup_steps=int(warmup_ratio * steps), rows=len(packed), seed=seed, decay=decay,
    )  # fmt: skip
