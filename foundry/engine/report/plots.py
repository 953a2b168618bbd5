"""The report's drawings, each made of the report alone."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from foundry.engine.report.axes import WIDTH, Chart, short, spread, svg
from foundry.spec.report import Importance, JobReport, TargetReport

COLOURS = ("c1", "c2", "c3", "c4", "c5", "c6")
_FIRST_COLUMN = 34.0
_ROW, _LEAST_ROW = 16.0, 4.0
_TALLEST = 360.0
_TRAINED = {"correct": "correction", "distill": "distillation", "lora": "LoRA"}
_LOSSES = (
    (
        "held_out_loss",
        "held-out loss",
        "Loss on held-out text during the {}, on less of it than the table above reads.",
    ),
    ("loss", "training loss", "What the {} minimised, batch by batch, with its trailing mean."),
)
_TITLES = {"heads": "Attention heads", "ffn": "Feed-forward channels", "hidden": "Hidden width"}


Line = list[tuple[float, float]]


class Figure(NamedTuple):
    """A drawing and the sentence under it."""

    svg: str
    caption: str
    legend: tuple[tuple[str, str], ...] = ()
    """Names with the colours that stand for them."""


def colour_of(place: int) -> str:
    """The colour of the target at this place, the same in every drawing."""
    return COLOURS[place % len(COLOURS)]


def curves(report: JobReport) -> Iterator[Figure]:
    """For each training stage the held-out loss, and the loss that was minimised."""
    for stage, name in _TRAINED.items():
        found = {t.target: c for t in report.targets for c in t.curves if c.stage == stage}
        if stage == "correct" and found:
            found = {"teacher": next(iter(found.values()))}  # one teacher for all targets
        for key, what, caption in _LOSSES:
            lines = {
                target: [(row["tokens"], row[key]) for row in curve.rows if key in row]
                for target, curve in found.items()
            }
            if any(len(line) > 1 for line in lines.values()):
                yield _curve(f"{name}: {what}", caption.format(name), lines, dots=key == "held_out_loss")


def _curve(title: str, caption: str, lines: dict[str, Line], *, dots: bool) -> Figure:
    """Single looks as dots; a loss of every batch faintly, with its trailing mean."""
    says = "; ".join(f"{name} from {line[0][1]:.3f} to {line[-1][1]:.3f}" for name, line in lines.items() if line)
    chart = Chart(
        title[0].upper() + title[1:], says, spread([x for line in lines.values() for x, _ in line], margin=0),
        spread([y for line in lines.values() for _, y in line]), "tokens", "nats per token",
    )  # fmt: skip
    for place, (name, line) in enumerate(lines.items()):
        if not dots:
            chart.line(line, colour_of(place), style="line faint")
        chart.line(line if dots else _trailing_mean(line), colour_of(place))
        for point in line if dots else ():
            chart.dot(point, colour_of(place), f"{name}: {point[1]:.4f} after {short(point[0])} tokens")
    return Figure(chart.draw(), caption, tuple((name, colour_of(place)) for place, name in enumerate(lines)))


def _trailing_mean(line: Line) -> Line:
    """Each value averaged with those before it, a twentieth of the run."""
    width = max(1, len(line) // 20)
    values = [y for _, y in line]
    means = [sum(part) / len(part) for n in range(len(line)) for part in [values[max(0, n + 1 - width) : n + 1]]]
    return [(x, mean) for (x, _), mean in zip(line, means, strict=True)]


def size_against_quality(report: JobReport) -> Figure | None:
    """Every shape that was tried, and what became of the one that was taken."""
    tried = [
        (place, c.parameters, c.held_out_kl, c)
        for place, t in enumerate(report.targets)
        for c in t.candidates
        if c.held_out_kl is not None
    ]
    made = [
        (place, row.parameters, row.kl_to_teacher, row)
        for place, t in enumerate(report.targets)
        for row in t.metrics
        if row.parameters and row.kl_to_teacher is not None and row.model in ("pruned", "distilled", "lora")
    ]
    points = [(float(x), float(y)) for _, x, y, _ in (*tried, *made)]
    if not points:
        return None
    chart = Chart(
        "Size against distance to the teacher",
        f"{len(tried)} shapes were tried for {len(report.targets)} targets",
        spread([x for x, _ in points], margin=0.12), spread([y for _, y in points], from_zero=True),
        "parameters", "KL to the teacher, nats",
    )  # fmt: skip
    for place, x, y, candidate in tried:
        says = f"{candidate.shape.in_words}: KL {y:.3f}"
        chart.dot((x, y), colour_of(place), says, shape="hollow")
    for place in range(len(report.targets)):
        path = [(float(x), float(y)) for p, x, y, _ in made if p == place]
        if len(path) > 1:
            chart.line(path, colour_of(place), style="line thin")
    for place, x, y, row in made:
        says = f"{report.targets[place].target}, {row.model}: KL {y:.3f}"
        chart.dot((x, y), colour_of(place), says, shape="square" if row.model == "pruned" else "full")
    caption = (
        "Hollow: the shapes that were tried, as they stood right after the cut, on text set apart for the choice. "
        "Square: the shape that was taken, on held-out text. Full: the same after training. Lower is closer."
    )
    return Figure(chart.draw(), caption, tuple((t.target, colour_of(n)) for n, t in enumerate(report.targets)))


def importance(report: JobReport) -> Iterator[Figure]:
    """A heat map for each axis: one row a layer, the statistic as depth of colour, and where each cut ends."""
    found = report.importance
    if found is None:
        return
    targets = [(place, t) for place, t in enumerate(report.targets) if t.kept is not None]
    yield _layers(found, targets)
    for axis in ("heads", "ffn", "hidden"):
        if axis in found.scores:
            yield _heat(axis, found.scores[axis], targets)


def _layers(found: Importance, targets: Sequence[tuple[int, TargetReport]]) -> Figure:
    scores = [float(score) for score in found.scores["layers"]]
    chart = Chart(
        "Importance of layers", f"1 minus the cosine between what goes in and what comes out, {len(scores)} layers",
        (-0.6, len(scores) - 0.4), spread(scores, from_zero=True), "layer", "how far it moves the stream",
    )  # fmt: skip
    for layer, score in enumerate(scores):
        chart.line([(layer, 0), (layer, score)], "heat", style="bar")
    for place, target in targets:
        assert target.kept is not None
        shift = 0.3 * ((place + 1) / (len(targets) + 1) * 2 - 1)
        for layer in set(range(len(scores))) - set(target.kept.layers):
            chart.dot((layer + shift, scores[layer]), colour_of(place), f"{target.target} does without layer {layer}")
    caption = "How far each layer of the teacher moves the stream. A dot marks a layer that a target does without."
    return Figure(chart.draw(), caption, tuple((t.target, colour_of(n)) for n, t in targets))


def _heat(axis: str, scores: Sequence[Sequence[float]], targets: Sequence[tuple[int, TargetReport]]) -> Figure:
    by_index = axis == "heads"
    rows = [list(row) for row in scores]
    height = max(_LEAST_ROW, min(_ROW, _TALLEST / len(rows)))
    width = (WIDTH - _FIRST_COLUMN - 4) / max(len(row) for row in rows)
    body = []
    for layer, row in enumerate(rows):
        most = max(row) or 1.0
        for column, score in enumerate(row):
            says = f"layer {layer}, " + (f"head {column}" if by_index else f"bin {column + 1} of {len(row)}")
            body.append(
                f'<rect class="cell" x="{_FIRST_COLUMN + column * width:.2f}" y="{4 + layer * height:.2f}" '
                f'width="{width:.2f}" height="{height:.2f}" style="fill-opacity:{_depth(score / most):.2f}">'
                f"<title>{says}: {score / most:.0%} of the layer's largest</title></rect>"
            )
    body += _row_names(len(rows), height)
    body += _kept_heads(targets, width, height) if by_index else _cut_lines(axis, targets, len(rows) * height)
    bottom = 4 + len(rows) * height
    under = "head" if by_index else "channels, the most important first"
    body.append(f'<text class="label" x="{(WIDTH + _FIRST_COLUMN) / 2:.0f}" y="{bottom + 15:.0f}" '
                f'text-anchor="middle">{under}</text>')  # fmt: skip
    what = "A dot marks a head that a target keeps." if by_index else "A line marks how many a target keeps."
    title = f"Importance of {_TITLES[axis].lower()}"
    drawn = svg(title, f"{len(rows)} layers, stronger colour is more important", body, bottom + 22)
    caption = f"{_TITLES[axis]}, one row a layer. Strength of colour: root of the share of the layer's largest. {what}"
    return Figure(drawn, caption, tuple((t.target, colour_of(n)) for n, t in targets))


def _depth(share: float) -> float:
    """Of colour: the root leaves something to see of layers in which one channel stands above all."""
    return max(0.03, math.sqrt(share))


def _row_names(rows: int, height: float) -> Iterator[str]:
    every = max(1, round(12 / height))
    for layer in range(0, rows, every):
        y = 4 + layer * height + height / 2 + 4
        yield f'<text x="{_FIRST_COLUMN - 6:.0f}" y="{y:.1f}" text-anchor="end">{layer}</text>'


def _kept_heads(targets: Sequence[tuple[int, TargetReport]], width: float, height: float) -> Iterator[str]:
    for place, target in targets:
        assert target.kept is not None
        shift = (place + 1) / (len(targets) + 1)
        for layer, heads in zip(target.kept.layers, target.kept.heads, strict=False):
            for head in heads:
                x, y = _FIRST_COLUMN + (head + shift) * width, 4 + (layer + 0.5) * height
                yield f'<circle class="kept" cx="{x:.1f}" cy="{y:.1f}" r="2.6" style="fill:var(--{colour_of(place)})"/>'


def _cut_lines(axis: str, targets: Sequence[tuple[int, TargetReport]], height: float) -> Iterator[str]:
    for place, target in targets:
        assert target.kept is not None
        ratio = target.kept.ffn_ratio if axis == "ffn" else target.kept.hidden_ratio
        x = _FIRST_COLUMN + ratio * (WIDTH - _FIRST_COLUMN - 4)
        yield (
            f'<line class="cut" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{height + 6:.1f}" '
            f'style="stroke:var(--{colour_of(place)})"><title>{target.target} keeps {ratio:.0%}</title></line>'
        )
