"""What 4 to 6 bits cost a model: with and without an importance matrix, in plain mixes and in one that was measured.

    python -m benchmarks.quantise [--teacher FOLDER] [--tokens N ...] [--held-out-tokens N]

The weights are rounded as they are written into a GGUF and put back into transformers in float32: what is compared is
the rounding alone, without a runtime's own. KL is from the unrounded model's distribution on held-out text, in nats a
token.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from demo.corpus import write_jsonl
from foundry.engine.corpus import Corpus
from foundry.engine.export.activations import UNTUNED, Tuning, hear
from foundry.engine.export.exam import pieces
from foundry.engine.export.mix import measure_classes, mix_within
from foundry.engine.export.quantize import quantize
from foundry.engine.hardware import processor_name
from foundry.engine.models import load_model, load_tokenizer
from foundry.intake.checkpoint import Checkpoint, open_checkpoint
from foundry.intake.documents import Document
from foundry.spec.formats import bytes_of, gguf_type_of, parse_format, weight_bytes

_TEACHER = Path(__file__).parents[1] / "demo" / "teacher"
_PASSAGE_TOKENS = 256
_HELD_OUT_TOKENS = 12_000
_MIX_TOKENS = 2_048
_PLAIN = ("q4_k_m", "q5_k_m", "q6_k")


class Measured:
    """A model that can be rounded and restored, and what it said before."""

    def __init__(self, checkpoint: Checkpoint, model: PreTrainedModel, held_out: Sequence[Sequence[int]]) -> None:
        self.checkpoint, self.model, self._held_out = checkpoint, model, held_out
        self._weights = {name: value.detach().clone() for name, value in model.named_parameters()}
        self._expected = [self._say(passage) for passage in held_out]

    @torch.no_grad()
    def _say(self, passage: Sequence[int]) -> torch.Tensor:
        return torch.log_softmax(self.model(input_ids=torch.tensor([list(passage)])).logits[0].float(), dim=-1)

    def cost(self, quantisation: str, tuning: Tuning) -> tuple[int, float, float]:
        """Bytes of the tensors, KL and loss difference in nats a token."""
        size = sum(self._round(quantisation, tuning))
        kl = loss = 0.0
        for passage, was_TV in zip(self._held_out, self._expected, strict=True):
            now_TV = self._say(passage)
            kl += float((was_TV.exp() * (was_TV - now_TV)).sum())
            loss += float((was_TV - now_TV)[:-1].gather(1, torch.tensor(passage[1:])[:, None]).sum())
        tokens = sum(map(len, self._held_out))
        self.restore()
        return size, kl / tokens, loss / (tokens - len(self._held_out))

    def restore(self) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.data.copy_(self._weights[name])

    def _round(self, quantisation: str, tuning: Tuning) -> Iterator[int]:
        parameters = dict(self.model.named_parameters())
        for tensor in self.checkpoint.family.tensors(self.checkpoint.shape, self.checkpoint.present):
            kind = gguf_type_of(tensor, self.checkpoint.shape, quantisation, tuning.mix)
            value, heard = parameters[tensor.name], tuning.activations.get(tensor.name)
            if kind != "F32":
                rows = quantize(value.data, kind, heard and heard.mean_C)
                back = dequantize(rows, gguf.GGMLQuantizationType[kind]).reshape(value.shape)
                value.data.copy_(torch.from_numpy(np.ascontiguousarray(back)))
            yield bytes_of(value.numel(), kind)


def _passages(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, tokens: int) -> list[list[int]]:
    return [piece.ids_T.tolist() for piece in pieces(documents, tokenizer, _PASSAGE_TOKENS, tokens)]


def main() -> None:
    """Print one row for each way to write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, default=_TEACHER)
    parser.add_argument(
        "--tokens", type=int, nargs="*", default=[8_192], help="training text that activations are from"
    )
    parser.add_argument(
        "--held-out-tokens", type=int, default=_HELD_OUT_TOKENS, help="text that the files are judged on"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint, tokenizer = open_checkpoint(options.teacher), load_tokenizer(options.teacher)
    model = load_model(options.teacher, dtype=torch.float32, device="cpu")
    with TemporaryDirectory() as folder:
        write_jsonl(Path(folder) / "text.jsonl", 3_000_000)
        corpus = Corpus.load(Path(folder) / "text.jsonl", tokenizer, seed=0)
    held_out = _passages(corpus.held_out, tokenizer, options.held_out_tokens)
    texts = {tokens: _passages(corpus.train, tokenizer, tokens) for tokens in options.tokens}
    measured = Measured(checkpoint, model, held_out)
    print(f"{options.teacher.name}, {sum(map(len, held_out)):,} held-out tokens, {processor_name(1)}")
    print(f"{'file':<34}{'bytes':>12}{'KL':>10}{'loss':>10}")

    def row(name: str, quantisation: str, tuning: Tuning) -> None:
        size, kl, loss = measured.cost(quantisation, tuning)
        print(f"{name:<34}{size:>12,}{kl:>10.5f}{loss:>+10.5f}", flush=True)

    heard = {sum(map(len, text)): hear(model, checkpoint, text) for text in texts.values()}
    best = heard[max(heard)]
    classes = measure_classes(model, checkpoint, best, _passages(corpus.train, tokenizer, _MIX_TOKENS))
    for quantisation in _PLAIN:
        row(f"{quantisation}, without activations", quantisation, UNTUNED)
        for tokens, activations in heard.items():
            row(f"{quantisation}, activations of {tokens:,}", quantisation, Tuning(activations, {}))
        limit = weight_bytes(checkpoint.family, checkpoint.shape, parse_format(f"gguf:{quantisation}"))
        mix = mix_within(classes, checkpoint, limit, 0.0)
        row(f"mixed, in the bytes of {quantisation}", "mixed", Tuning(best, mix))
        print(f"  {', '.join(f'{role} {kind}' for role, kind in sorted(mix.items()))}", flush=True)


if __name__ == "__main__":
    main()
