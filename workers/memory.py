"""Whether the kernel killed for want of memory: its own count for the control group that we and our runs live in."""

from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")


def kills(own: Path = Path("/proc/self/cgroup"), mount: Path = _MOUNT) -> int:
    """`oom_kill` of memory.events (Linux, cgroup v2, Documentation/admin-guide/cgroup-v2.rst); 0 where there is none.

    A container sees its own group as the root of the mount, a service of systemd below it.
    """
    try:
        lines = own.read_text(encoding="ascii", errors="replace").splitlines()
        group = next(line.removeprefix("0::").lstrip("/") for line in lines if line.startswith("0::"))
    except (OSError, StopIteration):
        return 0
    for folder in (mount / group, mount):
        try:
            events = (folder / "memory.events").read_text(encoding="ascii")
        except OSError:
            continue
        return sum(int(line.split()[1]) for line in events.splitlines() if line.startswith("oom_kill "))
    return 0
