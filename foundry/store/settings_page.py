"""docs/reference/settings.md, made from the settings themselves: `python -m foundry.store.settings_page > FILE`."""

from typing import Any

from pydantic_core import PydanticUndefined

from foundry.store.settings import PREFIX, Settings

_HEAD = """\
# Settings

Environment variables of the API and the workers, read once when a process starts. A value that cannot be stops it with
a message that names the variable. This page is made by `python -m foundry.store.settings_page`.

| variable | by default | what it says |
|---|---|---|
"""


def page() -> str:
    """The whole page."""
    return _HEAD + "".join(_row(name, field) for name, field in Settings.model_fields.items())


def _row(name: str, field: Any) -> str:
    says = " ".join(str(field.description).split()).replace("|", "\\|")
    return f"| `{PREFIX}{name.upper()}` | {_default(field)} | {says} |\n"


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "see there"
    if field.default is None or field.default == ():
        return "none"
    if isinstance(field.default, bool):
        return "`1`" if field.default else "`0`"
    return f"`{field.default:g}`" if isinstance(field.default, float) else f"`{field.default}`"


if __name__ == "__main__":
    print(page(), end="")
