"""What users write, and what they are told when it is wrong."""

from typing import Any

import pytest
import yaml

from foundry.errors import InvalidSpec, UnknownFormat, UnknownTarget
from foundry.spec.job import CustomTarget, JobSpec, is_hub_id
from foundry.spec.record import parse
from foundry.spec.target import budget_of

GOOD: dict[str, Any] = {"teacher": "./t", "data": "./d.jsonl", "targets": ["smartphone"]}


def test_spec_takes_the_bare_name_of_a_kind_for_its_defaults() -> None:
    words = {"loss": "jsd", "signal": "top_k", "decay": "wsd"}
    short = parse(JobSpec, {**GOOD, "distill": words})
    long = parse(JobSpec, {**GOOD, "distill": {field: {"kind": kind} for field, kind in words.items()}})
    assert short == long == parse(JobSpec, short.model_dump(mode="json"))


def test_spec_reads_the_numbers_people_write_when_yaml() -> None:
    """YAML 1.1 reads 20e6 and 1e-3 as text, because they have no point."""
    spec = parse(JobSpec, {**GOOD, "distill": yaml.safe_load("{tokens: 20e6, learning_rate: 1e-3}")})
    assert spec.distill is not None
    assert (spec.distill.tokens, spec.distill.learning_rate) == (20_000_000, 1e-3)


def test_spec_survives_json_when_round_tripped() -> None:
    spec = parse(JobSpec, {**GOOD, "targets": ["laptop", {"name": "kiosk", "max_bytes": 3e8}], "lora": {"rank": 4}})
    assert parse(JobSpec, spec.model_dump(mode="json")) == spec
    assert spec.targets[1] == CustomTarget(name="kiosk", max_bytes=300_000_000)


@pytest.mark.parametrize(
    ("change", "pointer", "says"),
    [
        ({"teacherr": "x"}, "/teacherr", "unknown field; the fields are teacher, data"),
        ({"targets": []}, "/targets", "at least 1"),
        ({"targets": [{"name": "kiosk"}]}, "/targets/0", "exactly one of max_bytes, max_params and"),
        ({"targets": [{"name": "kiosk", "max_bytes": 1, "max_params": 1}]}, "/targets/0", "exactly one"),
        ({"targets": ["laptop", "laptop"]}, "", "named twice: laptop"),
        ({"distill": {"tokens": 0}}, "/distill/tokens", "greater than 0 (got 0)"),
        ({"distill": {"tokns": 5}}, "/distill/tokns", "unknown field"),
        ({"distill": {"tokens": "many"}}, "/distill/tokens", "got 'many'"),
        ({"distill": {"tokens": 10**30}}, "/distill/tokens", "less than"),
        ({"distill": {"learning_rate": "1e999"}}, "/distill/learning_rate", "finite"),
        ({"distill": {"learning_rate": -1e-3}}, "/distill/learning_rate", "greater than 0"),
        ({"distill": {"loss": "kl"}}, "/distill/loss", "should be one of forward_kl, reverse_kl, jsd (got 'kl')"),
        ({"distill": {"loss": {"kind": "jsd", "beta": 1}}}, "/distill/loss/beta", "less than 1"),
        ({"distill": {"temperature": 1e999}}, "/distill/temperature", "finite"),
        ({"seed": -1}, "/seed", "got -1"),
        ({"teacher": ""}, "/teacher", "at least 1 character"),
    ],
    ids=str,
)  # fmt: skip
def test_spec_names_field_and_value_when_wrong(change: dict[str, Any], pointer: str, says: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse(JobSpec, {**GOOD, **change})
    assert [(p.pointer, says in p.detail) for p in caught.value.problems] == [(pointer, True)], caught.value.message


def test_spec_names_every_missing_field_at_once() -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse(JobSpec, {})
    assert {p.pointer for p in caught.value.problems} == {"/teacher", "/data", "/targets"}


def test_unknown_format_lists_the_formats() -> None:
    with pytest.raises(UnknownFormat, match=r"'gguf:q9'.*gguf:q4_k_m"):
        parse(JobSpec, {**GOOD, "formats": ["gguf:q9"]})


def test_unknown_target_lists_the_targets_and_the_way_out() -> None:
    with pytest.raises(UnknownTarget, match=r"'toaster'.*smartphone.*laptop.*max_bytes"):
        budget_of("toaster", ("safetensors",))


HUB_IDS = ("org/name", "org/name@main")
FOLDERS = ("./org/name", "/org", "../a/b", "name", "a/b/c")


@pytest.mark.parametrize(("text", "expected"), [*((t, True) for t in HUB_IDS), *((t, False) for t in FOLDERS)])
def test_hub_id_is_told_from_a_folder(text: str, expected: bool) -> None:
    assert is_hub_id(text) is expected
