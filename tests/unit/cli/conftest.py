import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from foundry.cli import main


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def foundry(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The `foundry` command in this process."""

    def command(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["foundry", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        code = ended.value.code
        return Result(code if isinstance(code, int) else int(code is not None), captured.out, captured.err)

    return command
