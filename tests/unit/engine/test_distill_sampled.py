"""Text that the teacher writes: every kind of document, the same when interrupted, nothing near held-out text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foundry.engine.context import RunContext, Stopped
from foundry.engine.distill.sampled import sample, sampled_documents
from foundry.engine.distill.stage import distill
from foundry.engine.workspace import Workspace
from foundry.errors import InvalidData
from foundry.intake.documents import is_held_out
from foundry.spec.job import JobSpec
from foundry.spec.lifecycle import EventType
from tests import tiny
from tests.unit.engine.conftest import Heard, MakeWorkspace

MakeData = Callable[[Callable[[int], dict[str, Any]]], Path]


@pytest.fixture
def make_data(tmp_path: Path) -> MakeData:
    """60 documents, each with an id that says its side."""

    def make(document: Callable[[int], dict[str, Any]]) -> Path:
        path = tmp_path / "documents.jsonl"
        rows = [{"id": f"d{number}", **document(number)} for number in range(60)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return make


def asked(
    make_workspace: MakeWorkspace, name: str = "job", tokens: int = 600, **more: Any
) -> tuple[JobSpec, Workspace]:
    sampled = {"tokens": tokens, "temperature": 0.8}
    return make_workspace(name, distill={"tokens": 2048, "batch_tokens": 512, "sampled": sampled}, **more)


def test_teacher_goes_on_from_training_documents(
    make_workspace: MakeWorkspace, context: RunContext, heard: Heard
) -> None:
    spec, workspace = asked(make_workspace)
    sample(spec, workspace, context)
    documents = sampled_documents(workspace)
    beginnings = {tiny.sentence(number, 40 + number % 5)[:20] for number in range(150)}
    assert documents and all(document.text and document.text[:20] in beginnings for document in documents)
    progress = heard.of(EventType.PROGRESS)
    assert progress[-1].data["step"] == 600


def test_teacher_writes_the_same_when_stopped_and_started_again(
    make_workspace: MakeWorkspace, context: RunContext, heard: Heard
) -> None:
    spec, whole = asked(make_workspace, "whole")
    sample(spec, whole, context)
    spec, halted = asked(make_workspace, "halted")
    heard.events.clear()
    heard.stop_after = 1
    with pytest.raises(Stopped):
        sample(spec, halted, context)
    assert sampled_documents(halted) == []
    heard.stop_after = None
    sample(spec, halted, context)
    assert sampled_documents(halted) == sampled_documents(whole)


def test_a_prompt_gets_a_completion_and_a_chat_an_answer(
    make_workspace: MakeWorkspace, context: RunContext, make_data: MakeData, tmp_path: Path
) -> None:
    teacher = tiny.save(tmp_path / "chatting", tiny.new_model(seed=1), tiny.new_tokenizer(chat=True))

    def document(number: int) -> dict[str, Any]:
        question, answer = tiny.sentence(number, 6), tiny.sentence(number + 1, 12)
        if number % 2:
            return {"prompt": question, "completion": answer}
        turns = [("user", question), ("assistant", answer)]
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    spec, workspace = asked(make_workspace, teacher=teacher, data=make_data(document))
    sample(spec, workspace, context)
    documents = sampled_documents(workspace)
    asked_for = {tiny.sentence(number, 6) for number in range(60)}
    assert any(document.messages for document in documents) and any(document.completion for document in documents)
    for document in documents:
        if document.messages is not None:
            assert document.messages[0].content in asked_for and document.messages[-1].role == "assistant"
        else:
            assert document.prompt in asked_for and document.completion


def test_what_comes_near_a_held_out_document_is_dropped(
    make_workspace: MakeWorkspace, context: RunContext, heard: Heard, make_data: MakeData
) -> None:
    held_out = next(number for number in range(60) if is_held_out(f"d{number}"))
    copied = tiny.sentence(held_out, 14)

    def document(number: int) -> dict[str, Any]:
        return {"prompt": copied if number in (held_out, 0, 1) else f"{number}", "completion": tiny.sentence(number)}

    spec, workspace = asked(make_workspace, tokens=5000, data=make_data(document))
    sample(spec, workspace, context)
    (said,) = (event for event in heard.of(EventType.LOG) if "dropped_documents" in event.data)
    assert said.data["dropped_documents"] >= 1
    assert all(document.prompt != copied for document in sampled_documents(workspace))


def test_distill_trains_on_it_and_says_how_much(make_workspace: MakeWorkspace, context: RunContext) -> None:
    spec, workspace = asked(make_workspace)
    distill(spec, workspace, context)
    said = workspace.result("distill")["targets"]["small"]
    assert said["sampled_documents"] == len(sampled_documents(workspace)) > 0


def test_data_without_a_beginning_is_refused_with_its_field(
    make_workspace: MakeWorkspace, context: RunContext, make_data: MakeData
) -> None:
    data = make_data(lambda number: {"prompt": tiny.sentence(number, 80), "completion": "yes"})
    spec, workspace = asked(make_workspace, data=data)
    with pytest.raises(InvalidData, match=r"leave distill\.sampled out") as caught:
        sample(spec, workspace, context)
    assert caught.value.pointer == "/distill/sampled"
