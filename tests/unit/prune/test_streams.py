"""What is flushed beside the work is flushed in its order, and its errors are heard."""

import threading

import pytest

from foundry.engine.prune.streams import Behind


def test_tasks_behind_run_one_after_the_other_and_are_done_at_the_end() -> None:
    done: list[int] = []
    first_may_end = threading.Event()

    def first() -> None:
        first_may_end.wait()
        done.append(1)

    with Behind() as behind:
        behind(first)
        assert done == []
        first_may_end.set()
        behind(lambda: done.append(2))
    assert done == [1, 2]


@pytest.mark.parametrize("more", [0, 1], ids=["at the end", "at the next task"])
def test_an_error_behind_is_raised(more: int) -> None:
    def fail() -> None:
        raise OSError("no space left")

    begun: list[int] = []
    with pytest.raises(OSError, match="no space left"), Behind() as behind:
        behind(fail)
        for number in range(more):
            behind(lambda number=number: begun.append(number))
    assert not begun


def test_an_error_of_the_work_waits_for_what_is_behind_it_and_comes_first() -> None:
    done: list[int] = []

    def task() -> None:
        done.append(1)
        raise OSError("no space left")

    with pytest.raises(ValueError, match="the work"), Behind() as behind:
        behind(task)
        raise ValueError("the work")
    assert done == [1]
