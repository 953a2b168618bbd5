import json
from pathlib import Path

import pytest

from foundry.cli.specfile import read_spec
from foundry.errors import InvalidSpec, UserError

GOOD = """
teacher: org/name@main
data: ds_1
targets: [smartphone, {name: kiosk, max_bytes: 300e6}]
correct: {method: lora}
distill: {tokens: 20e6}
formats: [safetensors, gguf:q4_k_m]
"""


def _write(folder: Path, text: str, name: str = "spec.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_spec_file_reads_the_words_of_the_readme(tmp_path: Path) -> None:
    spec = read_spec(_write(tmp_path, GOOD))
    assert (spec.teacher, spec.data, spec.distill and spec.distill.tokens) == ("org/name@main", "ds_1", 20_000_000)


def test_spec_file_may_be_json_with_tabs(tmp_path: Path) -> None:
    document = {"teacher": "a/b", "data": "ds_1", "targets": ["laptop"]}
    assert read_spec(_write(tmp_path, json.dumps(document, indent="\t"), "spec.json")).targets == ("laptop",)


def test_paths_start_from_the_folder_of_the_file_then_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, working = tmp_path / "beside", tmp_path / "working"
    for folder in (beside, working):
        (folder / "teacher").mkdir(parents=True)
    (working / "text.jsonl").write_text("{}")
    monkeypatch.chdir(working)
    spec = read_spec(_write(beside, "teacher: teacher\ndata: ./text.jsonl\ntargets: [laptop]"))
    assert spec.teacher == str(beside / "teacher")
    assert spec.data == str(working / "text.jsonl")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("spec.yaml", "teacher: a/b\ndata: x\ntargets: [laptop\nseed: 1\n", "spec.yaml, line 4"),
        ("spec.yaml", "teacher: a/b\n\tdata: x\n", "spec.yaml, line 2"),
        ("spec.yaml", "teacher: a/b\ndata: \0\n", "spec.yaml, line 2"),
        ("spec.json", '{"teacher": "a/b",\n"data" 1}', "spec.json, line 2"),
        ("spec.yaml", "- teacher\n", "holds list"),
        ("spec.yaml", "", "holds NoneType"),
    ],
    ids=["unclosed", "tab", "nul", "json", "list", "empty"],
)
def test_spec_file_names_the_line_when_it_cannot_be_read(tmp_path: Path, name: str, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_spec(_write(tmp_path, text, name))


def test_spec_file_names_the_file_when_there_is_none_or_it_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no spec file .*gone\.yaml"):
        read_spec(tmp_path / "gone.yaml")
    (tmp_path / "model.gguf").write_bytes(b"GGUF\xff\xfe")
    with pytest.raises(UserError, match="is not UTF-8"):
        read_spec(tmp_path / "model.gguf")


def test_spec_file_names_every_field_that_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec) as refused:
        read_spec(_write(tmp_path, "teacher: a/b\ndata: x\ntargets: [laptop]\nformats: [onnx]\ndistil: {}\n"))
    assert {p.pointer for p in refused.value.problems} >= {"/distil"}
