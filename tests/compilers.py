"""What a test needs of the machine to compile layers: told by what is installed, not by whether compiling works."""

import shutil
import sysconfig
from pathlib import Path

import pytest

_IS_THERE = (
    any(shutil.which(name) for name in ("g++", "clang++")) and Path(sysconfig.get_path("include"), "Python.h").exists()
)
needs_compiler = pytest.mark.skipif(not _IS_THERE, reason="there is no C++ compiler with Python's headers")
