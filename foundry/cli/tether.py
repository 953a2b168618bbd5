"""Run a command that ends when whoever started it is gone: `python tether.py GRACE_S COMMAND...`.

The parent holds the other end of our standard input and never writes to it. Its end means that the parent died, however
it died: the command gets SIGTERM, and SIGKILL after the grace. Runs as a plain script, so that it starts in an instant;
it may import nothing of Foundry.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading


def main(grace_s: float, command: list[str]) -> int:
    """Return the command's exit status, 128 + the number for a signal."""
    # Descriptors that were handed to us, such as a listening socket, are meant for the command.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, close_fds=False)

    def follow_parent() -> None:
        # Not sys.stdin.read(): a daemon thread that holds its lock makes the interpreter abort when it exits.
        while os.read(0, 4096):
            pass
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace_s)
        child.kill()

    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    threading.Thread(target=follow_parent, daemon=True).start()
    status = child.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
