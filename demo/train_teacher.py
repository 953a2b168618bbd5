"""Train the demo's teacher from the standard library's text: a 7.3 million parameter Llama in under 16 MB.

    python -m demo.train_teacher --tokens 14e6 -o demo/teacher

The log and the held-out loss of the teacher in this repository stand in docs/results.md. A module whose id falls into
the held-out share (`foundry.intake.documents.is_held_out`) is never trained on, so the demo measures on text that the
teacher never saw.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo.corpus import documents
from foundry.intake.documents import is_held_out

VOCABULARY = 4096
CONTEXT = 512
END = "<|endoftext|>"


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every string round-trips, and llama.cpp knows the pre-tokenizer by the name `gpt-2`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, model_max_length=CONTEXT
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=768, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def token_stream(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    end = tokenizer.eos_token_id
    return torch.tensor([token for ids in tokenizer(texts)["input_ids"] for token in (*ids, end)], dtype=torch.long)


def held_out_loss(model: LlamaForCausalLM, stream_N: torch.Tensor, device: str, windows: int = 64) -> float:
    """Mean cross entropy in nats per token over the first windows of the held-out stream."""
    ids = stream_N[: windows * CONTEXT].view(-1, CONTEXT)
    model.eval()
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        losses = [model(batch.to(device), labels=batch.to(device)).loss.item() for batch in ids.split(16)]
    model.train()
    return sum(losses) / len(losses)


def learning_rate_at(step: int, steps: int, warmup: int = 100, decay_share: float = 0.3) -> float:
    """Warm-up, stable, linear decay to zero, as a share of the peak rate."""
    return min(1.0, (step + 1) / warmup, (steps - step) / (decay_share * steps))


def optimizers_of(model: LlamaForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, weight_decay=0.0, betas=(0.9, 0.95)),
    ]


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = list(documents())
    train_texts = [d["text"] for d in found if not is_held_out(d["id"])]
    held_out_texts = [d["text"] for d in found if is_held_out(d["id"])]
    tokenizer = train_tokenizer(train_texts)
    model = new_model(tokenizer).to(device)
    train_N, held_out_N = token_stream(train_texts, tokenizer), token_stream(held_out_texts, tokenizer)
    forward = torch.compile(model)
    optimizers = optimizers_of(model, args.rate)
    steps = math.ceil(args.tokens / (args.batch * CONTEXT))
    generator = torch.Generator().manual_seed(args.seed)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{parameters:,} parameters, {len(train_N):,} training tokens, {len(held_out_N):,} held out, {steps} steps",
        flush=True,
    )
    log, start = [], time.monotonic()
    for step in range(steps):
        rate = args.rate * learning_rate_at(step, steps)
        offsets = torch.randint(len(train_N) - CONTEXT, (args.batch,), generator=generator)
        batch = torch.stack([train_N[at : at + CONTEXT] for at in offsets]).to(device)
        with torch.autocast(device, torch.bfloat16):
            loss = forward(batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % args.log_every == 0 or step + 1 == steps:
            row = {
                "step": step + 1,
                "tokens": (step + 1) * args.batch * CONTEXT,
                "loss": round(loss.item(), 4),
                "held_out_loss": round(held_out_loss(model, held_out_N, device), 4),
                "elapsed_s": round(time.monotonic() - start, 1),
            }
            log.append(row)
            print(json.dumps(row), flush=True)
            save(model, tokenizer, args.output, log)


def save(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, log: list[dict[str, float]]
) -> None:
    copy = LlamaForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    copy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "training_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=14e6)
    parser.add_argument("--batch", type=int, default=8, help="windows of 512 tokens a step")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--log-every", type=int, default=200, help="steps between log rows; each saves the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path("demo/teacher"))
    train(parser.parse_args())


if __name__ == "__main__":
    main()
