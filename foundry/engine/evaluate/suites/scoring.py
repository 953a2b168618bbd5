"""Metrics that the harness has to fetch or does not have; it calls `metric(references=[...], predictions=[...])`."""

from collections.abc import Mapping, Sequence
from typing import Any

from rouge_score.rouge_scorer import RougeScorer

from foundry.engine.evaluate.suites.confine import passes


def rouge_l(references: Sequence[str], predictions: Sequence[str]) -> float:
    """F measure of the longest common subsequence of stemmed words (Lin 2004, aclanthology.org/W04-1013), 0 to 1."""
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return float(scorer.score(references[0], predictions[0])["rougeL"].fmeasure)


def pass_at_1(references: Sequence[str], predictions: Sequence[str | Sequence[str]]) -> float:
    """Whether the one program that was written passes the tests; see `confine` for how it is run."""
    said = predictions[0] if isinstance(predictions[0], str) else predictions[0][0]
    return float(passes(f"{said}\n{references[0]}"))


def whole_functions(responses: Sequence[Sequence[str]], docs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """HumanEval: a model writes the body alone; the head of the function stands in the prompt."""
    return [[doc["prompt"] + said for said in answers] for answers, doc in zip(responses, docs, strict=True)]
