"""The scripted run of the workers' tests, with a loss and a speed to draw; an evaluation with a score to show."""

import sys
import time
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from foundry.engine.evaluate.alone import RESULT, is_evaluation
from foundry.engine.workspace import write_json
from foundry.spec.evaluation import EvaluationResult
from foundry.spec.lifecycle import EventType, ExitCode
from foundry.spec.suite import SuiteResult, TaskResult
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


def evaluate(folder: Path) -> int:
    """One task with a score, and one whose data is missing."""
    say(EventType.STAGE_STARTED, "evaluate started", stage="evaluate")
    tasks = (
        TaskResult(
            task="winogrande", title="Winogrande", status="done", metric="acc", value=0.5, standard_error=0.02,
            shots=0, examples=200, examples_of=1267, seconds=75.0,
        ),
        TaskResult(task="hellaswag", title="HellaSwag", status="missing", note="its data cannot be fetched"),
    )  # fmt: skip
    suite = SuiteResult(
        suite="quick", model="kiosk", limit=200, seed=1234, harness="lm-eval 0", hardware="Cortex-A76, 4 threads",
        finished_at=datetime.now(UTC), tasks=tasks,
    )  # fmt: skip
    found = EvaluationResult(benchmarks=suite).model_dump(mode="json")
    say(EventType.METRICS, "winogrande is done", stage="evaluate", result=found)
    write_json(folder / RESULT, found)
    return ExitCode.DONE


if __name__ == "__main__":
    root = Path(sys.argv[1])
    sys.exit(evaluate(root) if is_evaluation(root) else CurvedRun(root).main())
