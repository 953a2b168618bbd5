"""A teacher with a head of its own, made from a tied one, for `make bench-prune`.

    python -m benchmarks.untied --teacher DIR --data FILE --out DIR

The copy starts with the embedding's weights for a head and trains on, so that the two part. Small public teachers are
tied; what cutting does to an untied one would else be measured nowhere. With `--first-token 3000` its documents' first
token also has a stream that many times as long, as in large models (massive activations, arXiv 2402.17762).
"""

import argparse
from pathlib import Path

import torch
from transformers import PreTrainedModel

from demo.corpus import write_jsonl
from foundry.engine.corpus import Corpus, pack
from foundry.engine.models import load_model, load_tokenizer, save_model
from foundry.engine.packed import Packed
from foundry.engine.workspace import read_json, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, default=Path("demo/teacher"))
    parser.add_argument("--data", type=Path, help="JSON Lines or text; by default the standard library's text")
    parser.add_argument("--out", type=Path, default=Path("build/untied/teacher"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=8, help="rows of 256 tokens a step")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument(
        "--first-token", type=float, default=1.0, metavar="TIMES", help="lengthen its embedding so much"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    data = args.data or args.out.parent / "text.jsonl"
    if not args.data:
        write_jsonl(data)
    tokenizer = load_tokenizer(args.teacher)
    corpus = Corpus.load(data, tokenizer, seed=args.seed)
    text = pack(corpus.train, tokenizer, 256, max_tokens=args.steps * args.rows * 256)
    held_out = pack(corpus.held_out, tokenizer, 256, max_tokens=16_384)
    model = load_model(args.teacher, dtype=torch.float32, device=torch.device("cpu"))
    before = loss(model, held_out)
    part_head(model)
    lengthen_first(model, text, args.first_token)
    descend(model, text, args)
    save_model(model, like=args.teacher, folder=args.out)
    config = read_json(args.out / "config.json")
    write_json(args.out / "config.json", config | {"tie_word_embeddings": False})
    said = f"held-out loss {before:.4f} -> {loss(model, held_out):.4f}"
    if args.first_token == 1:
        head, embedding = model.lm_head.weight, model.get_input_embeddings().weight
        said += f"; head apart from embedding by {(head - embedding).norm() / head.norm():.1%} of it"
    print(said)


def part_head(model: PreTrainedModel) -> None:
    """Give the model a head of its own, equal to its embedding."""
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())


@torch.no_grad()
def lengthen_first(model: PreTrainedModel, text: Packed, times: float) -> None:
    """Multiply the embedding of the token that most documents begin with."""
    first = int(text.ids_NS[text.positions_NS == 0].mode().values)
    model.get_input_embeddings().weight[first] *= times


def descend(model: PreTrainedModel, text: Packed, args: argparse.Namespace) -> None:
    """AdamW on the next token, with a rate that falls to nothing."""
    parameters = [parameter.requires_grad_(True) for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=args.steps)
    batches = list(text.batches(args.rows))
    for step in range(min(args.steps, len(batches))):
        value = error(model, batches[step])
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 20 == 0:
            print(f"step {step}: {value.item():.3f}", flush=True)


def error(model: PreTrainedModel, batch) -> torch.Tensor:
    logits = model(**batch.model_inputs()).logits[batch.targets_BS]
    return torch.nn.functional.cross_entropy(logits.float(), batch.labels_BS[batch.targets_BS])


@torch.no_grad()
def loss(model: PreTrainedModel, text: Packed) -> float:
    found = [(float(error(model, batch)), int(batch.targets_BS.sum())) for batch in text.batches(8)]
    return sum(value * count for value, count in found) / sum(count for _, count in found)


if __name__ == "__main__":
    main()
