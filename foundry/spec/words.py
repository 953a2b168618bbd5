"""Numbers as people read them."""

from foundry.spec.weights import Shape

_NO_BREAK = "\N{NO-BREAK SPACE}"


def number(value: float | None) -> str:
    """7.25 M, 1.24 B; whole below ten thousand."""
    if value is None:
        return ""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{_NO_BREAK}{unit}"
    return f"{value:,.4g}" if isinstance(value, float) and value != int(value) else f"{int(value):,}"


def size(value: float | None) -> str:
    """Bytes in powers of ten."""
    if value is None:
        return ""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.3g}{_NO_BREAK}{unit}"
    return f"{value:.0f} B"


def share(value: float | None) -> str:
    """A ratio as percent."""
    return "" if value is None else f"{value:.1%}"


def decimals(value: float | None, places: int = 3) -> str:
    return "" if value is None else f"{value:.{places}f}"


def signed(value: float | None, places: int = 3) -> str:
    return "" if value is None else f"{value:+.{places}f}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """3.2 s, 4 min 10 s, 2 h 5 min."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def spread(interval: tuple[float, float] | None, kind: str = "decimals", places: int = 3) -> str:
    """An interval in the words of its figure."""
    if interval is None:
        return ""
    if kind == "share":
        return f"{share(interval[0])} to {share(interval[1])}"
    say = {"decimals": decimals, "signed": signed}[kind]
    return f"{say(interval[0], places)} to {say(interval[1], places)}"


def shape(value: Shape | None) -> str:
    """A shape in one line."""
    return value.in_words if value is not None else ""
