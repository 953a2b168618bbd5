"""What several processes say of their end, as the one error that a single process would have raised."""

import pytest
import torch

from foundry.engine.distill.launch import error_of
from foundry.engine.run import _last_words
from foundry.errors import (
    DamagedCheckpoint,
    Diverged,
    FieldProblem,
    FoundryError,
    InvalidSpec,
    OperatorError,
    OutOfMemory,
    SignalMismatch,
)

TOO_LONG = FieldProblem(pointer="/distill/sequence_tokens", code="invalid_spec", detail="128 is longer: give 64")


@pytest.mark.parametrize(
    "error",
    [
        InvalidSpec([TOO_LONG]),
        OutOfMemory("no room"),
        Diverged("too far", pointer="/distill/learning_rate"),
        SignalMismatch("another teacher", pointer="/distill/signal"),
        DamagedCheckpoint("cut short", pointer="/teacher"),
    ],
    ids=lambda error: error.code,
)
def test_error_is_what_a_process_raised(error: FoundryError) -> None:
    found = error_of([_last_words(error)])
    assert type(found) is type(error)
    assert (found.message, list(found.problems)) == (error.message, list(error.problems))


def test_error_is_the_cause_not_the_broken_connection_of_the_others() -> None:
    broken = _last_words(RuntimeError("Connection closed by peer"))
    assert type(error_of([broken, _last_words(OutOfMemory("no room"))])) is OutOfMemory
    assert type(error_of([broken, _last_words(torch.OutOfMemoryError("CUDA"))])) is OutOfMemory
    assert type(error_of([broken])) is OperatorError
