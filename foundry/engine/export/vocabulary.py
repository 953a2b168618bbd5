"""A tokenizer as llama.cpp wants it.

llama.cpp knows pre-tokenizers by name. The name follows from the structure of tokenizer.json, never from a hash of some
token ids: a tokenizer that was trained by its owner, or lost a part of its vocabulary, has a structure too. What
llama.cpp has no name for is refused with the reason.
"""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gguf
from gguf import TokenType
from transformers import PreTrainedTokenizerBase

from foundry.errors import ExportFailed

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
LLAMA_3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
QWEN_2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NAME_OF_SPLIT: Mapping[tuple[str, bool], str] = {  # (pattern, whether whole words skip the merges) -> llama.cpp's name
    (LLAMA_3, True): "llama-bpe",
    (LLAMA_3, False): "dbrx",
    (QWEN_2, False): "qwen2",
    (TEKKEN, True): "tekken",
}
_SPACE = "▁"
_METASPACE_DIFFERENCE = (
    "where text begins with a space or follows a special token, llama.cpp puts one more space token than transformers"
)
_NFC_DIFFERENCE = (
    "letters and accents that are written as two characters are joined by transformers (Unicode NFC), not by llama.cpp"
)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Everything that a GGUF file says about its tokenizer."""

    model: str
    """llama.cpp's algorithm: gpt2 (byte-level BPE) or llama (byte-fallback BPE with scores)."""
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()
    special: Mapping[str, int]
    """bos, eos, unk and pad, where the tokenizer has them."""
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    chat_template: str | None
    composes: bool = False
    """Whether the tokenizer brings text into Unicode's normal form C, which llama.cpp does not."""
    known_difference: str = ""
    """Where llama.cpp is known to cut text otherwise than this tokenizer does."""

    def is_cut_otherwise(self, text: str) -> bool:
        """Whether `known_difference` is about this text."""
        if self.composes:
            return unicodedata.normalize("NFC", text) != text
        apart = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
        names = (token for token, kind in zip(self.tokens, self.types, strict=True) if kind in apart)
        return bool(self.known_difference) and (text.startswith(" ") or any(name in text for name in names))

    def write(self, writer: gguf.GGUFWriter) -> None:
        """Add the keys to a file."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(list(self.tokens))
        writer.add_token_types(list(self.types))
        if self.merges:
            writer.add_token_merges(list(self.merges))
        if self.scores:
            writer.add_token_scores(list(self.scores))
        keys = {
            "bos": writer.add_bos_token_id,
            "eos": writer.add_eos_token_id,
            "unk": writer.add_unk_token_id,
            "pad": writer.add_pad_token_id,
        }
        for name, token in self.special.items():
            keys[name](token)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        writer.add_add_space_prefix(self.add_space_prefix)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, vocabulary_tokens: int) -> Vocabulary:
    """Read a fast tokenizer; `vocabulary_tokens` is the model's, which may be padded beyond the tokenizer's.

    Raises `ExportFailed` when llama.cpp has no way to say what this tokenizer does.
    """
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    model = document["model"]
    if model.get("type") != "BPE":
        raise _refused(f"its model is {model.get('type')}; byte-level and byte-fallback BPE can be written")
    if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _refused("its BPE has dropout, a subword prefix or a word suffix")
    tokens, types = _tokens(document, vocabulary_tokens)
    add_bos, add_eos = _added_ends(tokenizer)
    byte_level = Vocabulary(
        model="gpt2", pre="default", tokens=tokens, types=types, special=_special_ids(tokenizer),
        add_bos=add_bos, add_eos=add_eos, add_space_prefix=False, chat_template=_chat_template(tokenizer),
    )  # fmt: skip
    if model.get("byte_fallback"):
        prefix, difference = _space_prefix(document)
        return replace(
            byte_level,
            model="llama",
            scores=_scores(model, tokens),
            add_space_prefix=prefix,
            known_difference=difference,
        )
    composes = [step["type"] for step in _steps(document.get("normalizer"))] == ["NFC"]
    return replace(
        byte_level,
        pre=_pre_tokenizer(document),
        merges=[" ".join(pair) for pair in _merges(model)],
        composes=composes,
        known_difference=_NFC_DIFFERENCE if composes else "",
    )


def _refused(reason: str) -> ExportFailed:
    return ExportFailed(f"the tokenizer cannot be written to GGUF: {reason}")


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs by rank; older files write a pair as one string."""
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    return [(left, right) for left, right in pairs]


def _pre_tokenizer(document: Mapping[str, Any]) -> str:
    """llama.cpp's name for how text is cut into words before the merges."""
    if any(step["type"] != "NFC" for step in _steps(document.get("normalizer"))):
        raise _refused(f"it normalises text ({_types(document['normalizer'])}), which llama.cpp does not")
    steps = _steps(document.get("pre_tokenizer"))
    kinds = [step["type"] for step in steps]
    if not kinds or kinds[-1] != "ByteLevel":
        raise _refused(f"its pre-tokenizer is {kinds or 'absent'}; a byte-level one ends in ByteLevel")
    if steps[-1].get("add_prefix_space"):
        raise _refused("it puts a space before every text (add_prefix_space)")
    whole_words = bool(document["model"].get("ignore_merges"))
    by_regex = bool(steps[-1].get("use_regex", True))
    if kinds == ["ByteLevel"] and by_regex and not whole_words:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and by_regex and steps[0].get("individual_digits") and not whole_words:
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not by_regex:
        pattern = steps[0]["pattern"].get("Regex", "")
        isolated = (steps[0]["behavior"], steps[0]["invert"]) in (("Isolated", False), ("Removed", True))
        name = _NAME_OF_SPLIT.get((pattern, whole_words))
        if isolated and name:
            return name
        raise _refused(f"llama.cpp has no name for its split {pattern!r} (ignore_merges {whole_words})")
    raise _refused(
        f"llama.cpp has no name for the pre-tokenizer {kinds} (use_regex {by_regex}, ignore_merges {whole_words})"
    )


def _steps(part: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, which may be one or a sequence."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for inner in part.get("pretokenizers", part.get("normalizers", ())) for step in _steps(inner)]
    return [part]


def _types(part: Mapping[str, Any]) -> str:
    return ", ".join(step["type"] for step in _steps(part))


def _space_prefix(document: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether a byte-fallback tokenizer puts a space before a text, and where llama.cpp does that otherwise.

    SentencePiece and llama.cpp put one before every text; Metaspace, which transformers 5 makes of a Llama 2 tokenizer,
    does not where a space stands there already. Raises when the tokenizer does anything else with spaces.
    """
    if document["model"].get("ignore_merges"):
        raise _refused("byte-fallback BPE with ignore_merges")
    normalizers, pre_tokenizers = _steps(document.get("normalizer")), _steps(document.get("pre_tokenizer"))
    prepend, difference = False, ""
    for step in normalizers:
        if step["type"] == "Prepend" and step["prepend"] == _SPACE:
            prepend = True
        elif not (step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == _SPACE):
            raise _refused(f"it normalises text ({step['type']}), which llama.cpp does not")
    for step in pre_tokenizers:
        if step["type"] == "Split" and step["pattern"] == {"String": " "} and normalizers:
            continue  # Gemma's: it finds no space, because the normaliser has replaced them all
        if step["type"] != "Metaspace" or step.get("replacement") != _SPACE:
            raise _refused(f"byte-fallback BPE with the pre-tokenizer {step['type']}")
        if step.get("prepend_scheme", "always") != "never":
            prepend, difference = True, _METASPACE_DIFFERENCE
    if not normalizers and not pre_tokenizers:
        raise _refused(f"byte-fallback BPE that does not write spaces as {_SPACE}")
    return prepend, difference


def _scores(model: Mapping[str, Any], tokens: Sequence[str]) -> list[float]:
    """llama.cpp merges the pair whose joined token scores highest: minus the rank of the merge that makes the token."""
    missing = [byte for byte in range(256) if f"<0x{byte:02X}>" not in model["vocab"]]
    if missing:
        raise _refused(f"byte fallback without {len(missing)} of the 256 byte tokens")
    rank: dict[str, int] = {}
    for place, (left, right) in enumerate(_merges(model)):
        rank.setdefault(left + right, place)
    never = float(len(rank) + 1)
    return [-float(rank.get(token, never)) for token in tokens]


def _tokens(document: Mapping[str, Any], vocabulary_tokens: int) -> tuple[list[str], list[int]]:
    """Text and type of every row of the embedding; rows without a token are named and marked unused."""
    vocabulary: dict[str, int] = document["model"]["vocab"]
    added = {token["id"]: token for token in document["added_tokens"]}
    by_id = {number: text for text, number in vocabulary.items()} | {n: token["content"] for n, token in added.items()}
    if by_id and max(by_id) >= vocabulary_tokens:
        raise _refused(f"it has the token id {max(by_id)}, but the model's embedding has {vocabulary_tokens} rows")
    unknown = document["model"].get("unk_token")
    tokens, types = [], []
    for number in range(vocabulary_tokens):
        text = by_id.get(number)
        tokens.append(text if text is not None else f"[PAD{number}]")
        if text is None:
            types.append(TokenType.UNUSED)
        elif text == unknown:
            types.append(TokenType.UNKNOWN)
        elif number in added:
            types.append(TokenType.CONTROL if added[number]["special"] else TokenType.USER_DEFINED)
        elif (
            document["model"].get("byte_fallback") and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        ):
            types.append(TokenType.BYTE)
        else:
            types.append(TokenType.NORMAL)
    return tokens, [int(kind) for kind in types]


def _added_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Whether the tokenizer puts BOS before and EOS after a text; found by asking it."""
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    at = next((i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare), None)
    before, after = (whole[:at], whole[at + len(bare) :]) if at is not None else (None, None)
    if before not in ([], [tokenizer.bos_token_id]) or after not in ([], [tokenizer.eos_token_id]):
        raise _refused(f"it adds {before} before and {after} after a text; BOS and EOS can be said")
    return bool(before), bool(after)


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    found = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    return {name: int(token) for name, token in found.items() if token is not None}


def _chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several named templates
        template = template.get("default")
    return template or None
