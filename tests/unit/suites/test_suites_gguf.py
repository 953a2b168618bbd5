"""A GGUF in the harness: llama.cpp on the same weights gives the harness what transformers gives it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance

from foundry.engine.context import RunContext, Stopped
from foundry.engine.evaluate.locate import find_gguf
from foundry.engine.evaluate.suites.gguf import GgufModel
from foundry.engine.evaluate.suites.harness import HarnessModel
from foundry.engine.export.gguf import write_gguf
from foundry.engine.export.manifest import artifacts_in
from foundry.engine.export.vocabulary import vocabulary_of
from foundry.engine.models import load_model, load_tokenizer
from foundry.engine.workspace import write_json
from foundry.errors import DamagedCheckpoint, TeacherNotFound, UnknownFormat
from foundry.intake.checkpoint import open_checkpoint
from tests import manifests, tiny

pytestmark = pytest.mark.filterwarnings("ignore:::(lm_eval|datasets|evaluate|multiprocess|dill).*")
CONTEXT = RunContext(emit=lambda _: None, device=torch.device("cpu"), dtype=torch.float32, seed=0)
ANSWERS = (" the cat", " a red hill", " blue")


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A variant's folder with the same weights as safetensors and as GGUF."""
    folder = tmp_path_factory.mktemp("variant")
    plain = tiny.save(folder / "safetensors", tiny.new_model(seed=7).half().float())  # a GGUF rounds nothing
    checkpoint = open_checkpoint(plain)
    vocabulary = vocabulary_of(load_tokenizer(plain), checkpoint.shape.vocab)
    write_gguf(checkpoint, vocabulary, folder / "kiosk-f16.gguf", quantisation="f16", name="tiny")
    write_json(folder / "manifest.json", manifests.manifest("kiosk", artifacts_in(folder)).model_dump(mode="json"))
    return folder


@pytest.fixture(scope="module")
def in_llamacpp(variant: Path) -> Iterator[GgufModel]:
    file = find_gguf(variant, "gguf:f16")
    with GgufModel(file.path, load_tokenizer(file.tokenizer), CONTEXT, threads=1, most_tokens=4096) as model:
        yield model


@pytest.fixture(scope="module")
def in_transformers(variant: Path) -> HarnessModel:
    folder = variant / "safetensors"
    model = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    return HarnessModel(model, load_tokenizer(folder), CONTEXT)


def asked(kind: str, *arguments: tuple[object, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=pair, idx=n) for n, pair in enumerate(arguments)]


def questions() -> list[Instance]:
    """Several answers to each question, no context, a context that is longer than the model's."""
    pairs = [(tiny.sentence(n, 6), answer) for n in range(6) for answer in ANSWERS]
    return asked("loglikelihood", *pairs, ("", " the cat"), (tiny.sentence(1, 80), " the sea"))


def test_log_probabilities_equal_those_of_transformers_on_the_same_weights(
    in_llamacpp: GgufModel, in_transformers: HarnessModel
) -> None:
    mine = in_llamacpp.loglikelihood(questions(), disable_tqdm=True)
    theirs = in_transformers.loglikelihood(questions(), disable_tqdm=True)
    for (nats, greedy), (reference, as_greedy) in zip(mine, theirs, strict=True):
        assert nats == pytest.approx(reference, abs=0.02)  # llama.cpp keeps its cache in float16
        assert greedy == as_greedy


def test_what_was_fed_before_changes_no_answer(in_llamacpp: GgufModel) -> None:
    """The cache is shared between requests: in any order, and alone, each gets the same."""
    whole = questions()
    together = in_llamacpp.loglikelihood(whole, disable_tqdm=True)
    alone = [in_llamacpp.loglikelihood([one], disable_tqdm=True)[0] for one in reversed(whole)][::-1]
    for (nats, greedy), (other, as_greedy) in zip(together, alone, strict=True):
        assert nats == pytest.approx(other, abs=1e-4) and greedy == as_greedy


def test_answers_in_words_equal_those_of_transformers_and_end_where_they_should(
    in_llamacpp: GgufModel, in_transformers: HarnessModel
) -> None:
    settings = {"until": ["to"], "max_gen_toks": 6, "do_sample": False}
    requests = asked("generate_until", *((tiny.sentence(n, 5), settings) for n in range(4)))
    assert in_llamacpp.generate_until(requests, disable_tqdm=True)[1] == " "  # what it says first is " to"
    assert in_llamacpp.generate_until(requests, disable_tqdm=True) == in_transformers.generate_until(
        requests, disable_tqdm=True
    )
    rolling = asked("loglikelihood_rolling", (tiny.sentence(3, 90),))
    assert in_llamacpp.loglikelihood_rolling(rolling, disable_tqdm=True) == pytest.approx(
        in_transformers.loglikelihood_rolling(rolling, disable_tqdm=True), rel=1e-3
    )


def test_a_run_is_stopped_between_two_requests(variant: Path) -> None:
    stopping = RunContext(
        emit=lambda _: None, should_stop=lambda: True, device=torch.device("cpu"), dtype=torch.float32, seed=0
    )
    file = find_gguf(variant, "gguf:f16")
    with (
        GgufModel(file.path, load_tokenizer(file.tokenizer), stopping, threads=1, most_tokens=64) as model,
        pytest.raises(Stopped),
    ):
        model.loglikelihood(questions(), disable_tqdm=True)


def test_what_is_no_gguf_of_a_variant_is_said(variant: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownFormat, match="it has gguf:f16, safetensors"):
        find_gguf(variant, "gguf:q4_k_m")
    with pytest.raises(TeacherNotFound, match="no variant's folder"):
        find_gguf(variant / "safetensors", "gguf:f16")
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(DamagedCheckpoint, match=r"does not open damaged\.gguf"):
        GgufModel(damaged, tiny.new_tokenizer(), CONTEXT, threads=1, most_tokens=64)
