"""A spec as people write it: YAML or JSON, with paths that start from the file's own folder."""

import json
from pathlib import Path
from typing import Any, NoReturn

import yaml

from foundry.errors import UserError
from foundry.spec.job import JobSpec
from foundry.spec.record import parse

_PATHS = ("teacher", "data")


def read_spec(path: Path) -> JobSpec:
    """Read a spec file. Raises `UserError` that names the line when it cannot be read, `InvalidSpec` for its fields.

    Relative paths of teacher and data are looked for beside the file, then in the working directory; what exists is
    made absolute, what does not (hub ids, dataset ids) stays as it is.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"there is no spec file {path}; docs/quickstart.md shows how to write one") from error
    except UnicodeDecodeError as error:
        _refuse(path, text="", at=error.start, why="is not UTF-8", cause=error)
    document = _load_json(path, text) if path.suffix == ".json" else _load_yaml(path, text)
    if not isinstance(document, dict):
        raise UserError(f"{path} holds {type(document).__name__}, not fields such as `teacher: ./my-teacher`")
    located = {name: _locate(document[name], path.parent) for name in _PATHS if name in document}
    return parse(JobSpec, {**document, **located})


def _locate(value: Any, folder: Path) -> Any:
    if not isinstance(value, str) or not value:
        return value
    for place in (folder / Path(value).expanduser(), Path(value)):
        if place.exists():
            return str(place.resolve())
    return value


def _load_yaml(path: Path, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        _refuse(path, line=mark.line + 1 if mark else None, why=str(error.problem or error.context), cause=error)
    except yaml.YAMLError as error:  # characters that YAML forbids, such as NUL
        _refuse(
            path, text=text, at=getattr(error, "position", None), why=getattr(error, "reason", "not YAML"), cause=error
        )


def _load_json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        _refuse(path, line=error.lineno, why=error.msg, cause=error)


def _refuse(
    path: Path, *, why: str, cause: Exception, line: int | None = None, text: str = "", at: int | None = None
) -> NoReturn:
    if line is None and at is not None:
        line = text.count("\n", 0, at) + 1
    place = f"{path}, line {line}" if line else str(path)
    raise UserError(f"{place}: {why}") from cause
