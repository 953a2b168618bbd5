"""Genuine tokenizers of every kind that a Llama comes with, trained in a moment on the same small text."""

import argparse
import inspect
import json
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from foundry.engine.export.vocabulary import LLAMA_3, QWEN_2, TEKKEN

END = "<|endoftext|>"
TEXTS = (
    inspect.getsource(argparse)[:20_000],
    "日本語のテキスト 中文文本 한국어 " * 20,
    "Don't WE'LL it's 1234 5678 3.14159 éàü 👍🏽 👩‍👩‍👧‍👦 " * 20,
)
SPLITS = {"llama-bpe": (LLAMA_3, True), "dbrx": (LLAMA_3, False), "qwen2": (QWEN_2, False), "tekken": (TEKKEN, True)}
"""llama.cpp's name -> pattern, and whether whole words skip the merges."""
BYTE_LEVEL = ("gpt-2", "smollm", *SPLITS)
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@cache
def byte_level(name: str, vocabulary: int = 600) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the pre-tokenizer that llama.cpp calls `name`."""
    pattern, whole_words = SPLITS.get(name, ("", False))
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole_words))
    steps = {"gpt-2": [], "smollm": [pre_tokenizers.Digits(individual_digits=True)]}.get(
        name, [pre_tokenizers.Split(Regex(pattern), "isolated", invert=False)]
    )
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, last]) if steps else last
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, [END], vocabulary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


@cache
def byte_fallback(*, prefix: bool, vocabulary: int = 600) -> PreTrainedTokenizerFast:
    """BPE over characters that falls back to bytes, as SentencePiece models are converted."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    spaces = [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *spaces] if prefix else spaces)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trained = _trained(tokenizer, ["<unk>", "<s>", "</s>", *_BYTES], vocabulary).backend_tokenizer
    document = json.loads(trained.to_str())
    document["added_tokens"] = document["added_tokens"][:3]  # bytes are ordinary rows, not added tokens
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(document)), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _trained(tokenizer: Tokenizer, special: list[str], vocabulary: int, **options: object) -> PreTrainedTokenizerFast:
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False, **options)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[0])


def changed(tokenizer: PreTrainedTokenizerFast, **parts: object) -> PreTrainedTokenizerFast:
    """The same tokenizer with parts of its tokenizer.json replaced; `model` parts are merged."""
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    for name, part in parts.items():
        document[name] = {**document[name], **part} if name == "model" else part  # type: ignore[dict-item]
    special = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(document)), **special)
