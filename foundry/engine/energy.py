"""The energy counters that Linux shows of a processor (RAPL); most virtual machines hide them."""

from pathlib import Path

_COUNTERS = Path("/sys/class/powercap")


def processor_joules(counters: Path = _COUNTERS) -> float | None:
    """The sum over all packages since some moment in the past; None where it cannot be read.

    The counters wrap around after some hours: a difference below zero says nothing.
    """
    packages = [path for path in counters.glob("intel-rapl:*") if path.name.count(":") == 1]
    try:
        return sum(int((path / "energy_uj").read_text()) for path in packages) / 1e6 if packages else None
    except (OSError, ValueError):
        return None
