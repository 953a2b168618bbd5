from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from foundry.engine.export.card import licence_of, write_card
from foundry.spec.job import JobSpec
from foundry.spec.target import Budget
from foundry.spec.variant import Artifact, Lineage, Metrics, PrunePlan, VariantManifest
from foundry.spec.weights import Shape

TEACHER = Shape(layers=2, hidden=64, ffn=128, heads=4, kv_heads=2, head_dim=16, vocab=320, tied=True)
STUDENT = TEACHER.model_copy(update={"hidden": 32, "ffn": 96})
PLAN = PrunePlan(
    family="llama", target="watch", teacher_shape=TEACHER, shape=STUDENT, layers=(0, 1), hidden=tuple(range(32)),
    ffn=(tuple(range(96)),) * 2, heads=(tuple(range(4)),) * 2, repair=("refit", "rotate"),
)  # fmt: skip
ROWS = (
    Metrics(model="teacher", parameters=50_000, held_out_loss=2.0, perplexity=7.39),
    Metrics(model="distilled", parameters=20_000, held_out_loss=2.25, perplexity=9.49, top1_agreement_ratio=0.71),
    Metrics(
        model="gguf:q4_k_m", file_bytes=12_345, held_out_loss=2.27, tokens=4000, runtime="xllamacpp 1",
        hardware="a CPU",
        runtime_top1_ratio=0.95, decode_tokens_per_s=321.0, peak_memory_bytes=70_000_000,
    ),
)  # fmt: skip


def card(folder: Path, licence: dict[str, str] | None = None, terms: tuple[str, ...] = (), **changes: Any) -> str:
    spec = JobSpec(teacher=changes.pop("teacher", "./big"), data="./d", targets=("smartphone",))
    manifest = VariantManifest(
        target="watch", family="llama", shape=STUDENT, parameters=20_000, fits_budget=changes.pop("fits_budget", True),
        budget=Budget(target="watch", format="gguf:q4_k_m", context_tokens=512, max_bytes=1_000_000),
        created_at=datetime.now(UTC), spec=spec, metrics=ROWS,
        lineage=Lineage(teacher="./big", teacher_sha256="0", data="./d", data_sha256="0", versions={}),
        failed_formats={"gguf:f16": "too long a story"}, training={"distill": {"tokens": 1_000_000, "steps": 250}},
        files=(Artifact(path="watch-q4_k_m.gguf", bytes=12_345, sha256="0", format="gguf:q4_k_m"),),
    ).model_copy(update=changes)  # fmt: skip
    write_card(folder / "README.md", manifest, PLAN, licence or {}, terms, ["spaces differ"])
    return (folder / "README.md").read_text(encoding="utf-8")


def front_matter(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---")[1]))


def test_card_says_what_was_cut_trained_measured_and_left_out(tmp_path: Path) -> None:
    text = card(tmp_path)
    for line in (
        "| hidden width | 64 | 32 | 50% |",
        "| feed-forward width | 128 | 96 | 75% |",
        "Repaired by: refit, rotate.",
        "Distilled from the teacher's distribution: tokens 1,000,000, steps 250.",
        "| distilled | 20,000 | 2.25 | 9.49 |  | 71.0% |",
        "| gguf:q4_k_m | 12,345 | 2.27 | 95.0% | 321 | 70,000,000 | xllamacpp 1; a CPU |",
        "- `gguf:f16` is not shipped: too long a story",
        "llama-cli -m watch-q4_k_m.gguf",
        "Note: spaces differ.",
    ):
        assert line in text
    assert "AutoModelForCausalLM" not in text  # there is no safetensors folder in this variant


def test_card_says_loudly_when_the_budget_is_missed(tmp_path: Path) -> None:
    assert "**It does not fit**" in card(tmp_path, fits_budget=False)


def test_card_carries_the_licence_over(tmp_path: Path) -> None:
    text = card(tmp_path, {"license": "other", "license_name": "llama3"}, ("LICENSE",), teacher="meta/big@main")
    assert front_matter(text) == {
        "license": "other", "license_name": "llama3", "base_model": "meta/big", "library_name": "transformers",
        "pipeline_tag": "text-generation", "tags": ["foundry", "pruned", "distilled"],
    }  # fmt: skip
    assert "licence: llama3. Its terms are in `LICENSE`." in text


def test_card_does_not_invent_a_licence(tmp_path: Path) -> None:
    text = card(tmp_path)
    assert "names no licence" in text and "license" not in front_matter(text)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("---\nlicense: apache-2.0\nlanguage: en\n---\n# x", {"license": "apache-2.0"}),
        ("---\nlicense: [a, b]\n---\n", {}),
        ("---\nlicense: {broken\n---\n", {}),
        ("---\n- a list\n---\n", {}),
        ("# no front matter\nlicense: mit", {}),
    ],
    ids=["named", "not text", "not yaml", "not a mapping", "no front matter"],
)
def test_licence_is_read_from_front_matter_alone(content: str, expected: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(content)
    assert licence_of(tmp_path) == expected


def test_licence_of_a_teacher_without_a_card_is_unknown(tmp_path: Path) -> None:
    assert licence_of(tmp_path) == {}
