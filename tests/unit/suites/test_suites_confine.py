"""Code that a model wrote: what it may do and what it may not."""

import socket

import pytest

from foundry.engine.evaluate.suites.confine import can_confine, passes
from foundry.engine.evaluate.suites.scoring import pass_at_1, rouge_l, whole_functions

confined = pytest.mark.skipif(not can_confine(), reason="this kernel gives no process a network of its own")


@confined
@pytest.mark.parametrize(
    ("program", "passed"),
    [
        ("assert 1 + 1 == 2", True),
        ("assert 1 + 1 == 3", False),
        ("import sys; sys.exit(0)", False),
        ("import os; os._exit(0)", False),
        ("while True: pass", False),
        ("x = 'a' * 10**9", False),
        ("import socket; socket.create_connection(('127.0.0.1', {port}), timeout=1)", False),
        ("open('a', 'w').write('b'); assert open('a').read() == 'b'", True),
        ("open('a', 'w').write('b' * 2**22)", False),
        ("def broken(:", False),
    ],
    ids=["right", "wrong", "exit", "hard exit", "for ever", "memory", "network", "a file", "a large file", "syntax"],
)
def test_a_program_passes_only_when_it_comes_to_its_end_within_its_limits(program: str, passed: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert passes(program.replace("{port}", str(port)), timeout_s=2) is passed


@confined
def test_a_program_finds_nothing_of_an_earlier_one() -> None:
    assert passes("open('kept', 'w').write('x')")
    assert passes("import os\nassert not os.listdir('.')")


@confined
def test_pass_at_1_is_of_the_program_with_its_tests() -> None:
    (program,) = whole_functions([["    return 1"]], [{"prompt": "def f():\n"}])[0]
    assert pass_at_1(references=["assert f() == 1"], predictions=[[program]]) == 1.0
    assert pass_at_1(references=["assert f() == 2"], predictions=[program]) == 0.0


def test_rouge_l_is_the_longest_common_subsequence_over_both_lengths() -> None:
    # "police kill gunman" and "police killed the gunman" share 3 of 3 and 3 of 4 stems: 2 * 1 * .75 / 1.75
    assert rouge_l(references=["police killed the gunman"], predictions=["police kill gunman"]) == pytest.approx(6 / 7)
