"""The kernel's count of processes that it killed for want of memory."""

from pathlib import Path

from workers.memory import kills

EVENTS = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"


def group(folder: Path, name: str) -> Path:
    own = folder / "cgroup"
    own.write_text(f"0::/{name}\n")
    return own


def test_count_is_that_of_the_own_group(tmp_path: Path) -> None:
    (tmp_path / "system.slice").mkdir()
    (tmp_path / "system.slice" / "memory.events").write_text(EVENTS)
    assert kills(group(tmp_path, "system.slice"), tmp_path) == 2


def test_container_sees_its_group_as_the_root(tmp_path: Path) -> None:
    (tmp_path / "memory.events").write_text(EVENTS)
    assert kills(group(tmp_path, "docker/abc"), tmp_path) == 2


def test_without_a_count_there_is_none(tmp_path: Path) -> None:
    assert kills(group(tmp_path, "x"), tmp_path) == 0
    assert kills(tmp_path / "missing", tmp_path) == 0
    assert kills() >= 0  # this machine's own, whatever it has
