"""What a run has measured so far, and what that says about going on."""

import math
from collections.abc import Sequence
from typing import Any

from foundry.engine.distill.schedule import Schedule

_HISTORY_ROWS = 1000
_DIVERGED_NATS = 3.0
"""A loss this far above the lowest has lost what the run had learned: perplexity is twenty times the best."""
_DIVERGED_STEPS = 5
"""In a row; one bad batch is no divergence."""
_SMOOTHING = 0.9


class Logbook:
    """Rows of every learner's history: step, tokens, and loss with learning rate, or held-out loss."""

    def __init__(self, names: Sequence[str], saved: dict[str, Any]) -> None:
        self.rows: dict[str, list[dict[str, float]]] = saved.get("rows") or {name: [] for name in names}
        self._smooth: dict[str, float] = saved.get("smooth") or {}
        self._lowest: dict[str, float] = saved.get("lowest") or {}
        self._high_steps = dict.fromkeys(names, 0)

    def saved(self) -> dict[str, Any]:
        """What another logbook goes on from."""
        return {"rows": self.rows, "smooth": self._smooth, "lowest": self._lowest}

    def add_step(self, schedule: Schedule, done: int, losses: Sequence[float]) -> None:
        """Note the loss of step `done` (counted from 1) of every learner; only some of them when there are many."""
        for name, loss in zip(self.rows, losses, strict=True):
            self._follow(name, loss)
        if done % max(1, schedule.steps // _HISTORY_ROWS) and done != schedule.steps:
            return
        tokens, rate = done * schedule.batch_tokens, schedule.rate_at(done - 1)
        for name, loss in zip(self.rows, losses, strict=True):
            self.rows[name].append({"step": done, "tokens": tokens, "loss": loss, "learning_rate": rate})

    def add_look(self, schedule: Schedule, done: int, found: Sequence[float]) -> None:
        """Note the held-out loss of every learner after `done` steps."""
        for name, loss in zip(self.rows, found, strict=True):
            self.rows[name].append({"step": done, "tokens": done * schedule.batch_tokens, "held_out_loss": loss})

    @property
    def diverged(self) -> str | None:
        """The learner whose loss has been far above its lowest for some steps."""
        return next((name for name, steps in self._high_steps.items() if steps >= _DIVERGED_STEPS), None)

    @property
    def is_sound(self) -> bool:
        """Whether no learner's last loss was far above its lowest: only then is a checkpoint worth keeping."""
        return not any(self._high_steps.values())

    def lowest(self, name: str) -> float:
        """The lowest smoothed loss of a learner."""
        return self._lowest[name]

    def looks(self, name: str) -> list[tuple[int, float]]:
        """Step and held-out loss of every look at a learner."""
        return [(int(row["step"]), row["held_out_loss"]) for row in self.rows[name] if "held_out_loss" in row]

    def best_look(self, name: str) -> int:
        """The step of the lowest held-out loss of a learner."""
        return min(self.looks(name), key=lambda look: (look[1], look[0]))[0]

    def looks_without_gain(self) -> int:
        """How many looks ago some learner was last at its best."""
        return min(
            sum(step > best for step, _ in self.looks(name)) for name in self.rows for best in (self.best_look(name),)
        )

    def last(self, holding: str, key: str) -> float | None:
        """`key` of the newest rows that hold a value, averaged over the learners."""
        values = [next((r[key] for r in reversed(rows) if holding in r), None) for rows in self.rows.values()]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    def _follow(self, name: str, loss: float) -> None:
        smooth = self._smooth.get(name, loss)
        if loss > self._lowest.get(name, math.inf) + _DIVERGED_NATS:
            self._high_steps[name] += 1
            return
        self._high_steps[name] = 0
        self._smooth[name] = _SMOOTHING * smooth + (1 - _SMOOTHING) * loss
        self._lowest[name] = min(self._lowest.get(name, math.inf), self._smooth[name])
