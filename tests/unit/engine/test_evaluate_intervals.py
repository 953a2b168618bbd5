"""Intervals over documents: how often they hold the truth, and that they are of documents, not of tokens."""

import numpy as np
import pytest

from foundry.engine.evaluate.intervals import Resampling


@pytest.mark.parametrize("documents", [12, 40])
def test_interval_covers_the_truth_as_often_as_it_says_when_documents_differ_in_length_and_level(
    documents: int,
) -> None:
    generator = np.random.default_rng(0)
    resampling = Resampling(documents, seed=0, resamples=400)
    covered, trials, truth = 0, 800, 2.0
    for _ in range(trials):
        tokens_D = generator.integers(50, 150, documents).astype(float)
        loss_D = truth + generator.normal(0, 0.5, documents)  # of a whole document: its tokens are alike
        interval = resampling.ratio(loss_D * tokens_D, tokens_D)
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    assert 0.92 <= covered / trials <= 0.98


def test_interval_of_a_difference_is_narrow_when_both_models_find_the_same_documents_hard() -> None:
    generator = np.random.default_rng(1)
    tokens_D = np.full(60, 100.0)
    teacher_D = generator.normal(300, 80, 60)
    student_D = teacher_D + generator.normal(10, 2, 60)
    resampling = Resampling(60, seed=0)
    alone, paired = resampling.ratio(student_D, tokens_D), resampling.ratio(student_D - teacher_D, tokens_D)
    assert alone is not None and paired is not None
    assert paired[0] < 0.10 < paired[1]
    assert paired[1] - paired[0] < (alone[1] - alone[0]) / 10


def test_interval_is_left_open_when_documents_are_too_few() -> None:
    assert Resampling(4, seed=0).ratio(np.ones(4), np.ones(4)) is None


def test_interval_is_the_same_when_the_seed_is() -> None:
    top_D, bottom_D = np.arange(9.0), np.full(9, 3.0)
    first, again, other = (Resampling(9, seed=seed).ratio(top_D, bottom_D) for seed in (3, 3, 4))
    assert first == again != other
