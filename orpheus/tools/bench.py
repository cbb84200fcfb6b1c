"""Measure this machine: what preparing, training, speaking and streaming take here, beside the usual ways.

The measurements are the scripts in benchmarks/, each also a program of its own; they belong to the repository and are
not installed with the package.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from orpheus.errors import UserError

BENCHMARKS = {
    "prepare": "seconds of audio encoded per second, beside the loop of the notebook",
    "train": "tokens per second, MFU and memory: packed, padded, and as the notebook does",
    "generate": "tokens per second, strict and framed, beside transformers.generate",
    "stream": "decoder time per frame, beside overlapping windows",
}
FOLDER = "benchmarks"


def usage() -> str:
    """What `orpheus bench --help` prints."""
    lines = [f"  {name:10}{line}" for name, line in BENCHMARKS.items()]
    return "\n".join(["usage: orpheus bench NAME [options]", "", *lines])


def find(arguments: Sequence[str]) -> tuple[str, ModuleType]:
    """The benchmark that the first argument names, and its module. UserError: no such one, or none are here."""
    name = arguments[0]
    if name not in BENCHMARKS:
        raise UserError(f"there is no benchmark '{name}': expected one of {', '.join(BENCHMARKS)}")
    root = Path(__file__).resolve().parents[2]
    if not (root / FOLDER / f"{name}.py").is_file():
        raise UserError(
            f"the folder {FOLDER} with {name}.py is not beside the package: it is part of the repository, not of "
            "the installed package; run this in a checkout"
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return name, importlib.import_module(f"{FOLDER}.{name}")
