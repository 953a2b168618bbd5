"""Laws of the split, of the masks and of packing."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from foundry.engine import corpus
from foundry.engine.corpus import Corpus, pack
from foundry.engine.encode import encode
from foundry.errors import InvalidData
from foundry.intake.documents import Document, Message, is_held_out
from tests import tiny


def text(words: str, key: str = "k") -> Document:
    return Document(key=key, text=words)


def chat(*turns: tuple[str, str]) -> Document:
    return Document(key="chat", messages=tuple(Message(role, content) for role, content in turns))  # type: ignore[arg-type]


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_packed_logits_equal_those_of_the_document_alone() -> None:
    model, tokenizer = tiny.new_model(), tiny.new_tokenizer()
    documents = [text(tiny.sentence(n, 4 + n % 3), f"k{n}") for n in range(5)]
    packed = pack(documents, tokenizer, tiny.CONTEXT)
    batch = packed.batch(slice(None))
    assert (batch.positions_BS[:, 1:] == 0).any(), "the rows hold more than one document"
    with torch.no_grad():
        logits_BSV = model(**batch.model_inputs()).logits
        for row, ids in enumerate(batch.ids_BS):
            starts = [*torch.where(batch.positions_BS[row] == 0)[0].tolist(), len(ids)]
            for start, end in pairwise(starts):
                alone_SV = model(input_ids=ids[None, start:end]).logits[0]
                torch.testing.assert_close(logits_BSV[row, start:end], alone_SV, atol=2e-5, rtol=0)


def test_packed_targets_never_cross_documents_or_reach_into_padding() -> None:
    tokenizer = tiny.new_tokenizer()
    documents = [text(tiny.sentence(n, 5), f"k{n}") for n in range(4)]
    packed = pack(documents, tokenizer, tiny.CONTEXT)
    next_position_NS = packed.positions_NS.roll(-1, dims=1)
    targets = packed.targets_NS
    assert (next_position_NS[targets] == packed.positions_NS[targets] + 1).all()
    assert not targets[:, -1].any()
    tokens = [len(encoded.ids_T) for encoded in encode(documents, tokenizer)]
    cut = int((packed.positions_NS == 0).sum()) - int((packed.positions_NS == 0)[:, -1:].sum())
    assert packed.counted_tokens <= sum(tokens) - len(tokens)
    assert packed.counted_tokens >= sum(tokens) - len(tokens) - cut


def test_packed_bytes_are_those_of_the_text_whose_tokens_count() -> None:
    tokenizer = tiny.new_tokenizer()
    words = "the cat sat on a café 😀 mat"
    packed = pack([text(words)], tokenizer, tiny.CONTEXT)
    first = tokenizer.decode(tokenizer(words)["input_ids"][:1])
    assert packed.bytes == len(words.encode()) - len(first.encode())


def test_encode_ends_a_document_with_one_eos() -> None:
    tokenizer = tiny.new_tokenizer()
    (encoded,) = encode([text("the cat")], tokenizer)
    assert encoded.ids_T.tolist() == [*tokenizer("the cat")["input_ids"], tokenizer.eos_token_id]
    (encoded,) = encode([text("the cat" + tiny.END)], tokenizer)
    assert encoded.ids_T.tolist().count(tokenizer.eos_token_id) == 1


def test_encode_counts_the_completion_and_its_end_only() -> None:
    tokenizer = tiny.new_tokenizer()
    document = Document(key="k", prompt="the cat sat on", completion=" a red mat")
    (encoded,) = encode([document], tokenizer)
    counted = encoded.ids_T[encoded.counted_T].tolist()
    assert tokenizer.decode(counted) == " a red mat" + tiny.END
    assert encoded.bytes_T[encoded.counted_T].sum() == len(" a red mat")


def test_encode_counts_the_answers_of_a_chat_only() -> None:
    tokenizer = tiny.new_tokenizer(chat=True)
    document = chat(
        ("system", "be brief"),
        ("user", "the sea?"),
        ("assistant", "blue rain"),
        ("user", "a dog?"),
        ("assistant", "ran"),
    )
    (encoded,) = encode([document], tokenizer)
    assert tokenizer.decode(encoded.ids_T[encoded.counted_T].tolist()) == f"blue rain{tiny.END}ran{tiny.END}"
    assert tokenizer.decode(encoded.ids_T.tolist()).startswith("<|system|>be brief")


def test_encode_finds_the_answers_when_the_template_rewrites_earlier_turns() -> None:
    tokenizer = tiny.new_tokenizer(chat=True, vocabulary=321)
    # Marks the last turn only, so that no conversation is a prefix of a longer one.
    tokenizer.chat_template = (
        "{% for m in messages %}{% if loop.last %}LAST {% endif %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )
    document = chat(("user", "the sea?"), ("assistant", "blue rain"), ("user", "and?"), ("assistant", "the dog"))
    (encoded,) = encode([document], tokenizer)
    assert tokenizer.decode(encoded.ids_T[encoded.counted_T].tolist()) == f" blue rain the dog{tiny.END}"


def test_encode_refuses_chats_when_there_is_no_template() -> None:
    with pytest.raises(InvalidData, match="no chat template; give documents as"):
        list(encode([chat(("user", "a"), ("assistant", "b"))], tiny.new_tokenizer()))


def test_encode_names_the_document_when_the_template_refuses_it() -> None:
    tokenizer = tiny.new_tokenizer(chat=True, vocabulary=322)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidData, match="refuses document chat: roles must alternate"):
        list(encode([chat(("user", "a"), ("assistant", "b"))], tokenizer))


def test_pack_never_cuts_a_completion_that_fits_a_row() -> None:
    tokenizer = tiny.new_tokenizer()
    documents = [
        Document(key=str(n), prompt=tiny.sentence(n, 5), completion=" " + tiny.sentence(n + 1, 3)) for n in range(20)
    ]
    packed = pack(documents, tokenizer, tiny.CONTEXT)
    counted = sum(int(encoded.counted_T.sum()) for encoded in encode(documents, tokenizer))
    assert packed.counted_tokens == counted


def test_pack_fills_rows_with_running_text() -> None:
    tokenizer = tiny.new_tokenizer()
    documents = [text(tiny.sentence(n, 40), str(n)) for n in range(20)]
    tokens = sum(len(encoded.ids_T) for encoded in encode(documents, tokenizer))
    packed = pack(documents, tokenizer, 32)
    assert len(packed) * 32 < 1.15 * tokens
    starts = int((packed.positions_NS == 0).sum())
    assert packed.counted_tokens > tokens - starts


def test_pack_depends_on_the_seed_alone_when_shuffling() -> None:
    tokenizer = tiny.new_tokenizer()
    documents = [text(tiny.sentence(n, 30), str(n)) for n in range(10)]
    one, same, other = (pack(documents, tokenizer, 32, seed=seed).ids_NS for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert sorted(map(tuple, one.tolist())) == sorted(map(tuple, other.tolist()))


def test_pack_takes_from_many_documents_when_few_tokens_are_wanted() -> None:
    tokenizer = tiny.new_tokenizer()
    documents = [text(tiny.sentence(n, 400), str(n)) for n in range(12)]
    packed = pack(documents, tokenizer, 32, max_tokens=256, seed=0)
    assert packed.ids_NS.shape == (8, 32)
    firsts = {tuple(encoded.ids_T[:16].tolist()) for encoded in encode(documents, tokenizer)}
    assert sum(tuple(row[:16].tolist()) in firsts for row in packed.ids_NS) == 8, "the start of eight documents"


def test_pack_reads_on_in_long_documents_when_there_are_too_few() -> None:
    packed = pack([text(tiny.sentence(1, 400))], tiny.new_tokenizer(), 32, max_tokens=256)
    assert packed.ids_NS.shape == (8, 32)


def test_pack_refuses_documents_of_which_nothing_counts() -> None:
    with pytest.raises(InvalidData, match="no token of the data counts"):
        pack([text("")], tiny.new_tokenizer(), 8)


def test_corpus_split_follows_the_hash_when_there_is_enough(tmp_path: Path) -> None:
    path = tiny.write_texts(tmp_path / "data.jsonl", documents=4000, words=30)
    found = Corpus.load(path, tiny.new_tokenizer(), seed=0)
    assert found.moved == 0
    assert found.share == 1
    assert all(is_held_out(document.key) for document in found.held_out)
    assert not any(is_held_out(document.key) for document in found.train)
    assert len(found.train) + len(found.held_out) == 4000


def test_corpus_moves_documents_when_a_small_one_holds_out_too_little(tmp_path: Path) -> None:
    path = tiny.write_texts(tmp_path / "data.jsonl", documents=60, words=30)
    tokenizer = tiny.new_tokenizer()
    found, again = (Corpus.load(path, tokenizer, seed=0) for _ in range(2))
    assert found.moved > 0
    held_out, train = (sum(len(e.ids_T) for e in encode(side, tokenizer)) for side in (found.held_out, found.train))
    assert 0.09 < held_out / (held_out + train) < 0.2
    assert [d.key for d in found.held_out] == [d.key for d in again.held_out]


def test_corpus_keeps_documents_with_one_key_on_one_side(tmp_path: Path) -> None:
    rows = [{"id": f"pair-{n // 2}", "text": tiny.sentence(n, 30)} for n in range(60)]
    found = Corpus.load(write_jsonl(tmp_path / "data.jsonl", rows), tiny.new_tokenizer(), seed=0)
    assert found.held_out
    assert not {d.key for d in found.held_out} & {d.key for d in found.train}


def test_corpus_order_depends_on_the_seed_and_not_on_the_file(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"id": str(n), "text": tiny.sentence(n, 30)} for n in range(50)]
    one, other = write_jsonl(tmp_path / "a.jsonl", rows), write_jsonl(tmp_path / "b.jsonl", rows[::-1])
    tokenizer = tiny.new_tokenizer()
    first = [d.key for d in Corpus.load(one, tokenizer, seed=5).train]
    assert first == [d.key for d in Corpus.load(other, tokenizer, seed=5).train]
    assert first != [d.key for d in Corpus.load(one, tokenizer, seed=6).train]


def test_corpus_takes_an_even_sample_when_the_file_is_larger_than_memory_should_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.write_texts(tmp_path / "data.jsonl", documents=400, words=30)
    monkeypatch.setattr(corpus, "_LARGEST_TEXT", 20_000)
    found = Corpus.load(path, tiny.new_tokenizer(), seed=0)
    assert found.share in (0.25, 0.5)
    kept = [*found.train, *found.held_out]
    assert sum(len(document.text or "") for document in kept) <= 20_000
    assert len(kept) > 40


def test_corpus_refuses_a_single_document(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", [{"text": tiny.sentence(1, 200)}])
    with pytest.raises(InvalidData, match="too few to hold some out"):
        Corpus.load(path, tiny.new_tokenizer(), seed=0)


def test_corpus_refuses_too_little_text(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", [{"text": "a b"}, {"text": "c d"}, {"text": "e f"}])
    with pytest.raises(InvalidData, match="give more text"):
        Corpus.load(path, tiny.new_tokenizer(), seed=0)
