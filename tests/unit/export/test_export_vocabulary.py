import pytest
from gguf import TokenType
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from foundry.engine.export.vocabulary import vocabulary_of
from foundry.errors import ExportFailed
from tests.tiny import CHAT_TEMPLATE, new_tokenizer
from tests.trained_tokenizers import BYTE_LEVEL, byte_fallback, byte_level, changed


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_vocabulary_names_the_pre_tokenizer_by_its_structure(name: str) -> None:
    tokenizer = byte_level(name)
    vocabulary = vocabulary_of(tokenizer, len(tokenizer))
    assert (vocabulary.model, vocabulary.pre) == ("gpt2", name)
    assert vocabulary.tokens[0] == "<|endoftext|>"
    assert vocabulary.types[0] == TokenType.CONTROL
    assert set(vocabulary.types[1:]) == {TokenType.NORMAL}
    assert all(merge.count(" ") == 1 for merge in vocabulary.merges)


@pytest.mark.parametrize("prefix", [True, False])
def test_vocabulary_scores_byte_fallback_tokens_by_the_rank_of_their_merge(prefix: bool) -> None:
    tokenizer = byte_fallback(prefix=prefix)
    vocabulary = vocabulary_of(tokenizer, len(tokenizer))
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    assert (vocabulary.model, vocabulary.pre, vocabulary.add_space_prefix) == ("llama", "default", prefix)
    assert [vocabulary.types[n] for n in (0, 1, 3)] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.BYTE]
    by_score = sorted(ids, key=lambda token: -vocabulary.scores[ids[token]])
    merges = tokenizer.backend_tokenizer.to_str()
    first, second = by_score[:2]
    assert vocabulary.scores[ids[first]] == 0 and vocabulary.scores[ids[second]] == -1
    assert min(vocabulary.scores) == vocabulary.scores[ids["<0x41>"]]
    assert first in merges


def test_vocabulary_marks_rows_without_a_token_as_unused() -> None:
    tokenizer = byte_level("gpt-2")
    vocabulary = vocabulary_of(tokenizer, len(tokenizer) + 2)
    assert list(vocabulary.tokens[-2:]) == [f"[PAD{len(tokenizer)}]", f"[PAD{len(tokenizer) + 1}]"]
    assert list(vocabulary.types[-2:]) == [TokenType.UNUSED] * 2


def test_vocabulary_refuses_a_tokenizer_larger_than_the_embedding() -> None:
    tokenizer = byte_level("gpt-2")
    with pytest.raises(ExportFailed, match=f"embedding has {len(tokenizer) - 1} rows"):
        vocabulary_of(tokenizer, len(tokenizer) - 1)


def test_vocabulary_tells_added_from_control_tokens_and_carries_the_chat_template() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=new_tokenizer().backend_tokenizer, eos_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    tokenizer.add_tokens(["plain"])
    tokenizer.chat_template = CHAT_TEMPLATE
    vocabulary = vocabulary_of(tokenizer, len(tokenizer))
    types = dict(zip(vocabulary.tokens, vocabulary.types, strict=True))
    assert (types["<|user|>"], types["plain"]) == (TokenType.CONTROL, TokenType.USER_DEFINED)
    assert vocabulary.special == {"eos": 0}
    assert vocabulary.chat_template == CHAT_TEMPLATE


def test_vocabulary_finds_out_whether_bos_and_eos_are_added() -> None:
    def template(*pieces: dict[str, object]) -> PreTrainedTokenizerFast:
        special = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
        processor = {"type": "TemplateProcessing", "single": list(pieces), "pair": [], "special_tokens": special}
        return changed(
            byte_level("gpt-2"),
            post_processor=processor
            | {"pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}]},
        )

    text: dict[str, object] = {"Sequence": {"id": "A", "type_id": 0}}
    end: dict[str, object] = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    found = {
        case: (made.add_bos, made.add_eos)
        for case, pieces in {"none": [text], "bos": [end, text], "both": [end, text, end]}.items()
        for made in [vocabulary_of(template(*pieces), 600)]
    }
    assert found == {"none": (False, False), "bos": (True, False), "both": (True, True)}
    with pytest.raises(ExportFailed, match=r"adds \[0, 0\] before"):
        vocabulary_of(template(end, end, text), 600)


REFUSED = {
    "normalizer": (dict(normalizer={"type": "NFKC"}), "normalises text"),
    "prefix space": (
        dict(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}),
        "add_prefix_space",
    ),
    "unknown split": (
        dict(pre_tokenizer={"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\p{L}+"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ]}),
        "no name for its split",
    ),
    "no pre-tokenizer": (dict(pre_tokenizer=None), "absent"),
    "whole words": (dict(model={"ignore_merges": True}), "ignore_merges True"),
    "dropout": (dict(model={"dropout": 0.1}), "dropout"),
}  # fmt: skip


@pytest.mark.parametrize(("parts", "reason"), REFUSED.values(), ids=REFUSED)
def test_vocabulary_refuses_what_llamacpp_has_no_word_for(parts: dict[str, object], reason: str) -> None:
    with pytest.raises(ExportFailed, match=reason):
        vocabulary_of(changed(byte_level("gpt-2"), **parts), 600)


def test_vocabulary_says_where_llamacpp_prefixes_twice_what_metaspace_does_not() -> None:
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    vocabulary = vocabulary_of(changed(byte_fallback(prefix=True), normalizer=None, pre_tokenizer=metaspace), 600)
    assert "one more space token" in vocabulary.known_difference
    cut_otherwise = {text: vocabulary.is_cut_otherwise(text) for text in ("plain", " leading", "a </s> b")}
    assert cut_otherwise == {"plain": False, " leading": True, "a </s> b": True}
    exact = vocabulary_of(byte_fallback(prefix=True), 600)
    assert not exact.known_difference and not exact.is_cut_otherwise(" leading")


def test_vocabulary_says_that_llamacpp_does_not_join_letters_and_accents() -> None:
    vocabulary = vocabulary_of(changed(byte_level("qwen2"), normalizer={"type": "NFC"}), 600)
    assert vocabulary.pre == "qwen2" and "NFC" in vocabulary.known_difference
    assert [vocabulary.is_cut_otherwise(text) for text in ("\u00e9", "e\u0301", " leading")] == [False, True, False]


def test_vocabulary_takes_gemmas_split_at_spaces_that_its_normalizer_has_replaced() -> None:
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    vocabulary = vocabulary_of(changed(byte_fallback(prefix=False), pre_tokenizer=split), 600)
    assert (vocabulary.model, vocabulary.add_space_prefix, vocabulary.known_difference) == ("llama", False, "")


def test_vocabulary_refuses_byte_fallback_that_normalises() -> None:
    with pytest.raises(ExportFailed, match="Lowercase"):
        vocabulary_of(changed(byte_fallback(prefix=False), normalizer={"type": "Lowercase"}), 600)


def test_vocabulary_refuses_another_model_than_bpe() -> None:
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    )
    with pytest.raises(ExportFailed, match="WordLevel"):
        vocabulary_of(words, 2)
