"""A run that does no work: a real process with the real protocol, workspace, checkpoints and variant folder.

What it does is written in the spec's name, as words such as `steps=20 end=crash`. It resumes from its checkpoint.
"""

import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from foundry.engine.workspace import Workspace, new_folder, write_json
from foundry.spec.lifecycle import EventType, ExitCode, RunEvent
from tests import manifests

CHECKPOINT_STEPS = 5
END = {
    "done": ExitCode.DONE, "user_error": ExitCode.USER_ERROR, "out_of_memory": ExitCode.OUT_OF_MEMORY,
    "storage": ExitCode.STORAGE, "stopped": ExitCode.STOPPED, "crash": ExitCode.CRASHED,
}  # fmt: skip


def say(type: EventType, message: str, level: str = "info", **data: object) -> None:
    print(RunEvent(type=type, message=message, level=level, data=data).model_dump_json(), flush=True)


def write_state(step: int, folder: Path) -> None:
    write_json(folder / "state.json", step)


class Run:
    def __init__(self, root: Path) -> None:
        self.workspace = Workspace(root)
        self.spec = self.workspace.spec
        self.words = dict(word.split("=", 1) for word in self.spec.name.split())
        self.asked = threading.Event()

    def main(self) -> int:
        deaf = "deaf" in self.words
        signal.signal(signal.SIGTERM, lambda *_: None if deaf else self.asked.set())
        if not deaf:
            threading.Thread(target=self.stop_with_parent, daemon=True).start()
        try:
            self.odd_things()
        except MemoryError:
            return ExitCode.OUT_OF_MEMORY
        if not self.train():
            return ExitCode.STOPPED
        end = self.words.get("end", "done")
        if end == "crash":
            raise RuntimeError("the machine room is on fire")
        if end == "user_error":
            say(EventType.LOG, "line 3: not JSON", "error", code="invalid_data", pointer="/data")
        if end == "done":
            self.export()
        return END[end]

    def stop_with_parent(self) -> None:
        while os.read(0, 1024):
            pass
        self.asked.set()

    def train(self) -> bool:
        """Count steps; whether the end was reached."""
        steps, delay_s = int(self.words.get("steps", 3)), float(self.words.get("delay", 0))
        first = next((step for step, _ in self.workspace.checkpoints("distill")), 0)
        say(EventType.LOG, f"from step {first}", first=first, pid=os.getpid())
        if self.workspace.is_done("distill"):
            return True
        say(EventType.STAGE_STARTED, "distill started", stage="distill")
        if first:
            say(EventType.LOG, f"distill: resumed at step {first}", stage="distill", step=first)
        for step in range(first + 1, steps + 1):
            time.sleep(delay_s)
            say(EventType.PROGRESS, f"distill {step}/{steps}", stage="distill", step=step, steps=steps)
            if step % CHECKPOINT_STEPS == 0 or self.asked.is_set():
                self.workspace.save_checkpoint("distill", step, partial(write_state, step))
                say(EventType.CHECKPOINT, f"checkpoint {step}", stage="distill", step=step)
            if self.asked.is_set():
                return False
        write_json(self.workspace.stage("distill") / "done.json", {})  # checkpoints stay, for tests to look at
        say(EventType.STAGE_COMPLETED, "distill completed", stage="distill")
        return True

    def odd_things(self) -> None:
        """What no run should do, and what must not hurt."""
        if "babble" in self.words:
            sys.stdout.buffer.write(b"not JSON\n\xff\xfe\n{}\n" + b"x" * 3_000_000 + b"\n")
            sys.stdout.buffer.flush()
            say(EventType.SUCCEEDED, "I say that I am done")
        if "environment" in self.words:
            say(EventType.LOG, "environment", environment=dict(os.environ), argv=sys.argv[1:], cwd=os.getcwd())
        if "hang" in self.words and not any(self.workspace.checkpoints("distill")):
            self.workspace.save_checkpoint("distill", 1, partial(write_state, 1))
            faulthandler.register(signal.SIGUSR1)
            say(EventType.CHECKPOINT, "checkpoint 1", stage="distill", step=1)
            say(EventType.LOG, "about to hang", pid=os.getpid())
            time.sleep(600)
        if "starve" in self.words and self.workspace.inputs.micro_batch_divisor == 1:
            bytearray(10**15)
        if "child" in self.words:
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            say(EventType.LOG, "child", child=child.pid)

    def export(self) -> None:
        folders = []
        for target in self.spec.target_names:
            final = self.workspace.stage("export", target) / "variant"
            with new_folder(final) as folder:
                manifests.write_variant(folder, target)
            folders.append(str(final.relative_to(self.workspace.root)))
        if "tamper" in self.words:
            (final / "safetensors" / "model.safetensors").write_bytes(b"!" * 5000)
        if "forget" not in self.words:
            write_json(self.workspace.root / "result.json", {"variants": folders})


if __name__ == "__main__":
    sys.exit(Run(Path(sys.argv[1])).main())
