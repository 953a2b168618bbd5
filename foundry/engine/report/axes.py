"""One chart as SVG: a frame with two axes, and marks in it.

Colours are CSS variables of the page, so that one drawing is right in light, in dark and on paper. Sizes are units of
the view box, which is as wide as a telephone: a chart is scaled up on a desk, never down on a phone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 400, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 12, 38
_TICKS = 5


def ticks(low: float, high: float, most: int = _TICKS) -> list[float]:
    """Round numbers within the range, about `most` of them, in steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    raw = span / most
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number as an axis shows it: 2.5M, 40k, 0.05."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return f"{value:.4g}"


@dataclass
class Chart:
    """Collects marks in data coordinates and draws them. `title` and `description` are what a screen reader says."""

    title: str
    description: str
    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str
    y_label: str
    _marks: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A point of the data on the drawing."""
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return _LEFT + across * (WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM)

    def line(self, points: Sequence[tuple[float, float]], colour: str, *, style: str = "line") -> None:
        """A line through the points; `style` names a class of the page's style sheet."""
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in points))
        self._marks.append(f'<polyline class="{style}" points="{places}" style="stroke:var(--{colour})"/>')

    def dot(self, point: tuple[float, float], colour: str, says: str, *, shape: str = "full") -> None:
        """A mark that says what it is when it is pointed at."""
        x, y = self.at(*point)
        tip = f"<title>{escape(says)}</title>"
        if shape == "square":
            body = (
                f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" style="fill:var(--{colour})">{tip}</rect>'
            )
        elif shape == "hollow":
            body = (
                f'<circle class="hollow" cx="{x:.1f}" cy="{y:.1f}" r="4" style="stroke:var(--{colour})">{tip}</circle>'
            )
        else:
            body = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" style="fill:var(--{colour})">{tip}</circle>'
        self._marks.append(body)

    def draw(self) -> str:
        """The whole figure."""
        return svg(self.title, self.description, [*self._grid(), *self._marks], HEIGHT)

    def _grid(self) -> list[str]:
        drawn = []
        for value in ticks(*self.y):
            x0, y = self.at(self.x[0], value)
            x1, _ = self.at(self.x[1], value)
            drawn.append(f'<line class="grid" x1="{x0:.1f}" x2="{x1:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
            drawn.append(f'<text x="{x0 - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{short(value)}</text>')
        for value in ticks(*self.x):
            x, y = self.at(value, self.y[0])
            drawn.append(f'<text x="{x:.1f}" y="{y + 15:.1f}" text-anchor="middle">{short(value)}</text>')
        middle = (_LEFT + WIDTH - _RIGHT) / 2
        drawn.append(
            f'<text class="label" x="{middle:.1f}" y="{HEIGHT - 5}" text-anchor="middle">{escape(self.x_label)}</text>'
        )
        height = (_TOP + HEIGHT - _BOTTOM) / 2
        drawn.append(
            f'<text class="label" x="11" y="{height:.1f}" text-anchor="middle" '
            f'transform="rotate(-90 11 {height:.1f})">{escape(self.y_label)}</text>'
        )
        return drawn


def svg(title: str, description: str, body: Sequence[str], height: float) -> str:
    """A drawing with the words that a screen reader says of it."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}. {escape(description)}">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(body)}</svg>"
    )


def spread(values: Sequence[float], *, from_zero: bool = False, margin: float = 0.06) -> tuple[float, float]:
    """A range that holds all finite values with some room."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    room = margin * ((high - low) or abs(high) or 1)
    return (0.0 if from_zero and low >= 0 else low - room), high + room
