"""Ways to cut one teacher to a number of parameters, measured on one text: ours and those that the planner can imitate.

Letters of shapes: H hidden, F ffn channels, A heads x head_dim, L layers.
"""

import shutil
import statistics as arithmetic
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from foundry.engine.context import RunContext, choose_device
from foundry.engine.corpus import Corpus, pack
from foundry.engine.evaluate.compare import compare
from foundry.engine.models import load_model, load_tokenizer
from foundry.engine.prune.choose import choose_shape
from foundry.engine.prune.cutting import Cutting
from foundry.engine.prune.plan import make_plan
from foundry.engine.prune.statistics import Statistics
from foundry.engine.prune.texts import Texts
from foundry.engine.tensors import Reader, write_sharded
from foundry.engine.workspace import write_json
from foundry.intake.checkpoint import context_limit, open_checkpoint
from foundry.intake.documents import read_documents
from foundry.spec.search import shapes_within
from foundry.spec.stages import Prune, Repair
from foundry.spec.target import Budget
from foundry.spec.weights import Shape

DEFAULTS = Prune()
ALL: tuple[Repair, ...] = DEFAULTS.repair
_EQUAL = 0.05
"""How much of the budget a shape may leave unused, so that shapes of (nearly) one size are compared."""
_RANDOM_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measured cut."""

    method: str
    gone: float
    """The share of parameters that was to go; `parameters` is what stayed."""
    shape: str
    parameters: int
    increase: float
    """Of the held-out loss over the teacher's, nats per token."""
    ablation: str | None = None

    def as_json(self) -> dict[str, object]:
        return dict(vars(self))


class Bench:
    """A teacher with its statistics, and the texts that everything is measured on."""

    def __init__(
        self, teacher: Path, data: Path, held_out: Path | None, *, seed: int, candidates: int,
        calibration_tokens: int, choice_tokens: int, held_out_tokens: int, scratch: Path,
    ) -> None:  # fmt: skip
        device = choose_device()
        self.context = RunContext(emit=lambda event: None, device=device, dtype=torch.float32, seed=seed)
        self.checkpoint = open_checkpoint(teacher)
        self.family, self.shape = self.checkpoint.family, self.checkpoint.shape
        self.candidates = candidates
        tokenizer = load_tokenizer(teacher)
        length = min(256, context_limit(self.checkpoint.config) or 256)
        corpus = Corpus.load(data, tokenizer, seed=seed)
        measured_on = list(read_documents(held_out)) if held_out else corpus.held_out
        self.held_out = pack(measured_on, tokenizer, length, max_tokens=held_out_tokens)
        text = pack(corpus.train, tokenizer, length, max_tokens=calibration_tokens)
        self.choice = pack(corpus.train[::-1], tokenizer, length, max_tokens=choice_tokens)
        self.teacher = load_model(teacher, dtype=torch.float32, device=device)
        self.text, self._scratch, self._cuts = text, scratch, count()
        self.cutting = Cutting(self.checkpoint, Texts.of(text, self.choice), DEFAULTS, scratch, self.context)
        self.statistics = self.cutting.statistics
        self.base = self.loss(self.teacher)
        self.whole = self.size(self.shape)
        self._ours: dict[float, Shape] = {}
        self._plain: dict[float, Shape] = {}

    def size(self, shape: Shape) -> int:
        """Parameters outside embedding and head: those of the same model with no vocabulary."""
        return self.family.parameter_count(shape.model_copy(update={"vocab": 0}), self.checkpoint.present)

    def loss(self, model: PreTrainedModel) -> float:
        return compare(model, None, self.held_out, self.context).held_out_loss

    def kl(self, model: PreTrainedModel) -> float:
        """To the teacher, on the text that shapes are chosen on."""
        score = compare(model, self.teacher, self.choice, self.context).kl_to_teacher
        assert score is not None
        return score

    def budget(self, gone: float) -> int:
        return round(self.whole * (1 - gone))

    def shapes(self, gone: float) -> list[Shape]:
        """The prune stage's shapes under a budget that counts no embedding, but for those that leave much unused."""
        bare = self.shape.model_copy(update={"vocab": 0})
        limit = Budget(target="bench", format="safetensors", context_tokens=1, max_params=self.budget(gone))
        found = shapes_within(self.family, bare, limit, DEFAULTS.axes, self.checkpoint.present)
        found = [shape.model_copy(update={"vocab": self.shape.vocab}) for shape in found]
        return [shape for shape in found if self.size(shape) >= (1 - _EQUAL) * self.budget(gone)]

    def choose(self, shapes: Sequence[Shape], build: Callable[[Shape], PreTrainedModel], limit: int = 0) -> Shape:
        """As the prune stage chooses: by the KL of some candidates."""
        scored = choose_shape(shapes, self.shape, lambda shape: self.kl(build(shape)), limit or self.candidates)
        return scored[0][0]

    def cut(self, shape: Shape, repairs: tuple[Repair, ...], scores: Statistics | None = None) -> PreTrainedModel:
        """The student by these scores (the calibration's by default) after these repairs."""
        name = f"cut-{next(self._cuts)}"
        # Only ours looks for the layers by their loss; the others take those of the highest scores.
        layers = self.cutting.plan(shape).layers if "local" in repairs else None
        plan = make_plan(self.family, self.shape, shape, scores or self.statistics, repairs, name, layers)
        slicer, folder = self.cutting.slicer(plan), self._scratch / name
        folder.mkdir()
        write_json(folder / "config.json", slicer.config())
        if "local" in repairs:
            self.cutting.grow(plan, folder)
            self.cutting.forget(name)
        else:
            write_sharded(slicer.tensors(), slicer.entries(), folder)
        student = load_model(folder, dtype=torch.float32, device=self.context.device)
        shutil.rmtree(folder)
        return student

    def record(
        self, method: str, gone: float, shape: Shape, increase: float, ablation: str | None = None
    ) -> Record:  # fmt: skip
        return Record(
            method=method,
            gone=gone,
            shape=shape.in_words,
            parameters=self.size(shape),
            increase=increase,
            ablation=ablation,
        )

    def plain(self, method: str, gone: float) -> Record:
        """At the better of two shapes: chosen as the stage does, and chosen among those that leave hidden whole.

        The stage's first guesses cut hidden, which costs little only after a rotation.
        """
        shapes = self.shapes(gone)
        whole = [shape for shape in shapes if shape.hidden == self.shape.hidden]
        found = [self.choose(some, self.sliced) for some in (shapes, whole) if some]
        self._plain[gone] = shape = min(found, key=lambda shape: self.kl(self.sliced(shape)))
        return self.record(method, gone, shape, self.loss(self.sliced(shape)) - self.base)

    def sliced(self, shape: Shape) -> PreTrainedModel:
        """The published recipe: the highest scores of its statistic stay, and nothing is repaired."""
        return self.cut(shape, (), self.minitron)

    def ours(self, method: str, gone: float) -> Record:
        scored = choose_shape(
            self.shapes(gone), self.shape, lambda shape: self.cutting.score(shape, said=method), self.candidates
        )
        self._ours[gone] = shape = scored[0][0]
        repairs, _ = self.cutting.settle(shape, scored[0][1], method)
        left_out = ", ".join(sorted(set(ALL) - set(repairs)))
        print(f"{method}, {gone:.0%}: left out {left_out or 'nothing'}", flush=True)
        return self.record(method, gone, shape, self.loss(self.cut(shape, repairs)) - self.base)

    def ablation(self, name: str, gone: float, repairs: tuple[Repair, ...], scores: Statistics | None = None) -> Record:
        """Other repairs, or other scores, at the shape that all repairs have chosen."""
        shape = self._ours[gone]
        return self.record(f"ours, {name}", gone, shape, self.loss(self.cut(shape, repairs, scores)) - self.base, name)

    def magnitude(self, method: str, gone: float) -> Record:
        """The planner with norms of weights for scores, at the best shape for them."""
        scores = self._magnitudes
        shape = self.choose(self.shapes(gone), lambda shape: self.cut(shape, (), scores))
        return self.record(method, gone, shape, self.loss(self.cut(shape, (), scores)) - self.base)

    def random(self, method: str, gone: float) -> Record:
        """Indices by lot, at the shape that the Minitron statistic has chosen."""
        lots = [self._lot(self.context.seed + number) for number in range(_RANDOM_SEEDS)]
        shape = self._plain[gone]
        losses = [self.loss(self.cut(shape, (), lot)) for lot in lots]
        return self.record(method, gone, shape, arithmetic.fmean(losses) - self.base)

    def layer_drop(self, method: str, gone: float) -> Iterator[Record]:
        """Nothing where no number of layers comes near the ratio."""
        layers = max(1, round(self.shape.layers * (1 - gone)))
        shape = self.shape.model_copy(update={"layers": layers})
        if abs(self.size(shape) / self.whole - (1 - gone)) <= _EQUAL:
            yield self.record(method, gone, shape, self.loss(self.cut(shape, ())) - self.base)

    @cached_property
    def minitron(self) -> Statistics:
        """Its statistic in place of contributions; layers and hidden are scored as it scores them anyway."""
        layers = self.statistics.layers
        return self._scores(
            self.statistics.distance_L.square(), self.statistics.hidden_score_H.square(),
            torch.stack([layer.ffn[0].score_C for layer in layers]).square(),
            torch.stack([layer.attention.score_C for layer in layers]).square(),
        )  # fmt: skip

    @cached_property
    def _magnitudes(self) -> Statistics:
        """The L2 norm of all weights that go with an index."""
        sizes = {
            "hidden": [self.shape.hidden], "ffn": [self.shape.layers, self.shape.ffn],
            "heads": [self.shape.layers, self.shape.heads * self.shape.head_dim],
            "kv_heads": [self.shape.layers, self.shape.kv_heads * self.shape.head_dim],
        }  # fmt: skip
        squares = {axis: torch.zeros(size, dtype=torch.float64) for axis, size in sizes.items()}
        squares_L = torch.zeros(self.shape.layers, dtype=torch.float64)
        read = Reader(self.checkpoint, torch.device("cpu"))
        for place in self.family.tensors(self.shape, self.checkpoint.present):
            value = read(place.name).double().square()
            if place.weight.per_layer:
                squares_L[place.layer] += value.sum()
            for number, axis in enumerate(place.weight.dims):
                if axis in squares:
                    along = value.movedim(number, 0).flatten(1).sum(dim=1) if value.dim() > 1 else value
                    (squares[axis] if axis == "hidden" else squares[axis][place.layer]).add_(along)
        groups = (self.shape.layers, self.shape.kv_heads, 1, self.shape.head_dim)
        of_group = squares["kv_heads"].view(groups).expand(-1, -1, self.shape.heads // self.shape.kv_heads, -1)
        heads_LA = squares["heads"] + of_group.reshape(self.shape.layers, -1)
        return self._scores(squares_L, squares["hidden"], squares["ffn"], heads_LA)

    def _lot(self, seed: int) -> Statistics:
        lot = torch.Generator().manual_seed(seed)
        shape = self.shape
        sizes = (
            (shape.layers,), (shape.hidden,), (shape.layers, shape.ffn), (shape.layers, shape.heads * shape.head_dim)
        )  # fmt: skip
        return self._scores(*(torch.rand(size, generator=lot) for size in sizes))

    def _scores(self, squares_L: Tensor, squares_H: Tensor, squares_LF: Tensor, squares_LA: Tensor) -> Statistics:
        """As much of `Statistics` as the planner reads."""
        layers = [
            SimpleNamespace(
                attention=SimpleNamespace(contribution_C=a.sqrt()), ffn=[SimpleNamespace(contribution_C=f.sqrt())]
            )
            for f, a in zip(squares_LF, squares_LA, strict=True)
        ]
        found = SimpleNamespace(distance_L=squares_L.sqrt(), hidden_score_H=squares_H.sqrt(), layers=layers)
        return cast(Statistics, found)
