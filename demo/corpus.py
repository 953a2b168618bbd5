"""The demo's text: the standard library's own sources and docstrings, as every Python installation carries them.

Each document is `{"id": ..., "text": ...}`. A module gives two documents with one id, its source and its help page (the
docstrings as prose), so that both fall on the same side of the held-out split, which goes by id. The language reference
that `help('for')` prints gives a document for each topic.
"""

import ast
import inspect
import json
import sys
import sysconfig
import types
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pydoc_data.topics import topics

# Tables and generated code teach a small model nothing; tests are repetitive and larger than all the rest together.
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "encodings", "lib2to3", "idlelib", "pydoc_data"}
# Modules written in C have docstrings but no source; these import without side effects on every platform.
_BUILT_IN = (
    "builtins",
    "itertools",
    "math",
    "time",
    "sys",
    "errno",
    "marshal",
    "gc",
    "_collections",
    "_functools",
    "_io",
)


def documents() -> Iterator[dict[str, str]]:
    """Modules by path, then the language reference by topic, then the modules written in C."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _LEFT_OUT & set(relative.parts):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (UnicodeDecodeError, SyntaxError):
            continue
        if len(source) < 200:
            continue
        yield {"id": relative.as_posix(), "text": source}
        name = relative.with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        if page := _help_page(name, tree):
            yield {"id": relative.as_posix(), "text": page}
    for name, text in sorted(topics.items()):
        yield {"id": f"topics/{name}", "text": text}
    for name in _BUILT_IN:
        yield {"id": name, "text": _built_in_page(import_module(name))}


def _help_page(module: str, tree: ast.Module) -> str:
    """The docstrings of a module as one page: a signature, then its text indented, as `help()` prints them."""
    parts = []
    if text := ast.get_docstring(tree):
        parts.append(f"Help on module {module}:\n\n{text}\n")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and (
            text := ast.get_docstring(node)
        ):
            kind = "class " if isinstance(node, ast.ClassDef) else ""
            arguments = "" if isinstance(node, ast.ClassDef) else f"({ast.unparse(node.args)})"
            parts.append(f"{kind}{node.name}{arguments}\n" + _indented(text))
    page = "\n".join(parts)
    return page if len(page) >= 200 else ""


def _built_in_page(module: types.ModuleType) -> str:
    parts = [f"Help on built-in module {module.__name__}:\n\n{inspect.getdoc(module) or ''}\n"]
    for name, thing in sorted(vars(module).items()):
        members = sorted(vars(thing).items()) if inspect.isclass(thing) else []
        for label, one in [(name, thing), *((f"{name}.{member}", value) for member, value in members)]:
            if callable(one) and "_" not in (label[0], label.split(".")[-1][0]) and (text := inspect.getdoc(one)):
                parts.append(f"{label}\n" + _indented(text))
    return "\n".join(parts)


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" if line.strip() else "\n" for line in text.splitlines())


def write_jsonl(path: Path, max_bytes: int | None = None) -> int:
    """Write the documents as JSON Lines, stopping before `max_bytes`; return how many were written."""
    size = count = 0
    with path.open("w", encoding="utf-8") as out:
        for document in documents():
            line = json.dumps(document, ensure_ascii=False) + "\n"
            size += len(line.encode())
            if max_bytes is not None and size > max_bytes:
                break
            out.write(line)
            count += 1
    return count


if __name__ == "__main__":
    print(f"{write_jsonl(Path(sys.argv[1]))} documents in {sys.argv[1]}")
