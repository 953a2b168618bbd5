"""The tree that stands at the top of foundry/errors is the tree of the classes. Draw there what you add."""

import re
from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules

from foundry import errors
from foundry.errors import FoundryError


def test_the_drawn_tree_of_errors_is_the_tree_of_the_classes() -> None:
    drawn: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if (found := re.match(r"    ((?:[│├└─ ]{4})*)([A-Z]\w+)\b", line)) is not None:
            depth, name = len(found[1]) // 4, found[2]
            above[depth:] = [name]
            drawn[name] = above[depth - 1] if depth else "Exception"
    for module in iter_modules(errors.__path__, f"{errors.__name__}."):
        import_module(module.name)
    kinds = {kind for kind in _below(FoundryError) if kind.__module__.startswith(f"{errors.__name__}.")}
    assert all(getattr(errors, kind.__name__, None) is kind for kind in kinds)
    assert drawn == {kind.__name__: kind.__bases__[0].__name__ for kind in kinds}
    assert len({kind.code for kind in kinds}) == len(kinds)


def _below(kind: type[FoundryError]) -> Iterator[type[FoundryError]]:
    yield kind
    for heir in kind.__subclasses__():
        yield from _below(heir)
