"""Steps, rates and batches as pure functions of the step."""

from dataclasses import replace

import pytest
import torch

from foundry.engine.distill.schedule import Schedule, make_schedule, sequence_length
from foundry.engine.packed import Packed
from foundry.errors import InvalidSpec
from foundry.spec.stages import Wsd


def packed(rows: int, length: int = 16) -> Packed:
    ids_NS = torch.zeros(rows, length, dtype=torch.int32)
    return Packed(ids_NS, ids_NS, torch.ones_like(ids_NS, dtype=torch.bool), bytes=1)


def schedule(rows: int = 10, *, tokens: int = 1600, batch_tokens: int | None = 48, warmup: float = 0.1) -> Schedule:
    return make_schedule(
        packed(rows), tokens=tokens, batch_tokens=batch_tokens, peak_rate=1.0, warmup_ratio=warmup, seed=3
    )


def test_schedule_reads_every_row_once_an_epoch_and_in_a_new_order() -> None:
    made = schedule(rows=10, batch_tokens=48)
    places = [row for step in range(10) for row in made.rows_of(step)]
    epochs = [places[start : start + 10] for start in (0, 10, 20)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert epochs[0] != epochs[1]


def test_schedule_gives_the_same_batch_when_steps_are_asked_in_any_order() -> None:
    made, again = schedule(), schedule()
    assert [made.rows_of(step) for step in range(20)] == [again.rows_of(step) for step in reversed(range(20))][::-1]


def test_rate_rises_to_the_peak_then_falls_to_zero() -> None:
    made = schedule(tokens=48 * 100)
    rates = [made.rate_at(step) for step in range(made.steps)]
    assert made.warmup_steps == 10
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == rates[10] == 1.0
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.001


def test_wsd_holds_the_peak_and_falls_to_zero_in_the_last_part() -> None:
    made = replace(schedule(tokens=48 * 100), decay=Wsd(decay_ratio=0.2))
    rates = [made.rate_at(step) for step in range(made.steps)]
    assert rates[10:81] == [1.0] * 71
    assert rates[80:] == sorted(rates[80:], reverse=True) and rates[85] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.03


def test_shortened_schedule_keeps_the_shares_of_warm_up_and_decay() -> None:
    made = schedule(tokens=48 * 100).shortened(50)
    assert (made.steps, made.warmup_steps) == (50, 5)
    assert schedule(tokens=48 * 100).shortened(100) == schedule(tokens=48 * 100)


@pytest.mark.parametrize(
    ("rows", "tokens", "batch_tokens", "batch_rows", "steps"),
    [
        pytest.param(1000, 16 * 16 * 200, None, 16, 200, id="sixteen rows by default"),
        pytest.param(1000, 16 * 400, None, 4, 100, id="fewer rows where there would be fewer than a hundred steps"),
        pytest.param(3, 16 * 300, 16 * 8, 3, 100, id="no more rows than the text has"),
        pytest.param(1000, 5, 16 * 8, 8, 1, id="at least one step"),
        pytest.param(1000, 16 * 80, 5, 1, 80, id="at least one row"),
    ],
)
def test_schedule_fits_text_and_tokens(
    rows: int, tokens: int, batch_tokens: int | None, batch_rows: int, steps: int
) -> None:
    made = schedule(rows, tokens=tokens, batch_tokens=batch_tokens)
    assert (made.batch_rows, made.steps) == (batch_rows, steps)


def test_sequence_length_is_the_context_but_not_above_2048() -> None:
    assert sequence_length(None, 512, "/x") == 512
    assert sequence_length(None, 131_072, "/x") == 2048
    assert sequence_length(None, None, "/x") == 2048
    assert sequence_length(4096, 131_072, "/x") == 4096


def test_sequence_length_names_field_and_way_out_when_longer_than_the_context() -> None:
    with pytest.raises(InvalidSpec, match="give at most 512") as caught:
        sequence_length(1024, 512, "/distill/sequence_tokens")
    assert caught.value.problems[0].pointer == "/distill/sequence_tokens"
