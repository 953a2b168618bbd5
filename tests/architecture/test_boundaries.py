"""Laws that import-linter cannot see: what a fresh interpreter loads, and what the README says of the tree."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import foundry",
        "import foundry; foundry.Foundry",
        "import api.app",
        "import foundry.cli",
        "import foundry.engine.report.make",
    ],
)
def test_import_loads_no_torch_when_fresh(statement: str) -> None:
    loaded = _loaded_after(statement)
    assert not {"torch", "transformers"} & loaded


def test_import_foundry_loads_no_server_library_when_fresh() -> None:
    assert not {"sqlalchemy", "flask", "celery"} & _loaded_after("import foundry; foundry.Foundry")


def test_engine_loads_no_web_queue_or_database_when_fresh() -> None:
    loaded = _loaded_after("import foundry.engine.pipeline")
    assert not {"sqlalchemy", "flask", "celery", "foundry.store", "foundry.client", "api", "workers"} & loaded


def test_readme_tree_names_every_python_file_and_no_other() -> None:
    block = re.search(r"```\n(\.\n.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block, "README.md has lost its captioned tree"
    named = set(_paths_of(block.group(1)))
    present = {
        str(path.relative_to(ROOT))
        for folder in ("foundry", "api", "workers", "migrations", "demo", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert {p for p in named if p.endswith(".py") and "__init__" not in p} == present


def _paths_of(tree: str) -> list[str]:
    """Full paths from a drawing whose entries are indented by four columns a level; several names may share a line."""
    stack: list[str] = []
    found = []
    for line in tree.splitlines()[1:]:
        match = re.match(r"^((?:[│ ] {3})*)[├└]── (.*)$", line)
        if not match:
            continue
        depth = len(match.group(1)) // 4
        names = [n for n in re.split(r"\s{2,}", match.group(2))[0].split(" ") if n]
        stack = [*stack[:depth], names[0].rstrip("/")]
        found += ["/".join([*stack[:depth], name.rstrip("/")]) for name in names]
    return found
