"""Genuine tiny models: a two-layer Llama and a byte-level BPE, made in a second, saved as the hub lays folders out."""

import json
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DEMO_TEACHER = Path(__file__).parents[1] / "demo" / "teacher"
"""The trained teacher that the repository carries: `python -m demo.train_teacher` makes it again."""
END = "<|endoftext|>"
CONTEXT = 64
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_TEXT = "the cat sat on a mat and the dog ran to the sea while red birds sang of green hills under blue rain"
_WORDS = _TEXT.split()


def sentence(number: int, words: int = 12) -> str:
    """A line of text that depends on the number alone."""
    return " ".join(_WORDS[(number * 7 + i * (1 + number % 3)) % len(_WORDS)] for i in range(words)) + "."


@cache
def new_tokenizer(vocabulary: int = 320, *, chat: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every string has tokens, and decoding gives it back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([sentence(n) for n in range(200)], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, model_max_length=CONTEXT
    )
    if chat:
        made.chat_template = CHAT_TEMPLATE
    return made


def new_model(
    *, hidden: int = 32, ffn: int = 64, layers: int = 2, heads: int = 4, kv_heads: int = 2, head_dim: int = 8,
    vocabulary: int = 320, tied: bool = False, seed: int = 0, **more: object,
) -> LlamaForCausalLM:  # fmt: skip
    """A Llama with random float32 weights that depend on the seed alone."""
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim, max_position_embeddings=CONTEXT,
        tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0, pad_token_id=None, initializer_range=0.2, **more,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def narrow(model: LlamaForCausalLM, dimensions: int) -> LlamaForCausalLM:
    """Confine a model's residual stream to so many dimensions, which lie at random in its hidden ones."""
    hidden = model.config.hidden_size
    turn = torch.linalg.qr(torch.randn(hidden, hidden, generator=torch.Generator().manual_seed(3)))[0][:, :dimensions]
    inside = turn @ turn.T
    model.model.embed_tokens.weight.data @= inside
    for layer in model.model.layers:
        for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
            matrix.weight.data = inside @ matrix.weight.data
    return model


def save(folder: Path, model: LlamaForCausalLM | None = None, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """Write a model and its tokenizer as a hub folder; a default tiny model when none is given."""
    (model or new_model()).save_pretrained(folder)
    (tokenizer or new_tokenizer()).save_pretrained(folder)
    return folder


def write_texts(path: Path, documents: int = 60, words: int = 20) -> Path:
    """A JSON Lines file of small texts."""
    rows = ({"id": f"text-{n}", "text": sentence(n, words + n % 5)} for n in range(documents))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
