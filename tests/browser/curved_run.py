"""The scripted run of the workers' tests, with a loss and a speed to draw."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from foundry.spec.lifecycle import EventType
from tests.integration.workers.scripted_run import Run, say


class CurvedRun(Run):
    def train(self) -> bool:
        steps, delay_s = int(self.words.get("steps", 3)), float(self.words.get("delay", 0))
        say(EventType.STAGE_STARTED, "distill started", stage="distill")
        for step in range(1, steps + 1):
            time.sleep(delay_s)
            curve = {"loss": 2 + 3 / step, "held_out_loss": 2.5 + 2 / step, "tokens_per_s": 900 + step % 7}
            say(
                EventType.PROGRESS, f"distill {step}/{steps}", stage="distill", step=step, steps=steps, **curve,
                memory_bytes=10**9, left_s=(steps - step) * delay_s,
            )  # fmt: skip
            say(EventType.LOG, f"step {step} is done", stage="distill")
            if self.asked.is_set():
                return False
        say(EventType.STAGE_COMPLETED, "distill completed", stage="distill")
        return True


if __name__ == "__main__":
    sys.exit(CurvedRun(Path(sys.argv[1])).main())
