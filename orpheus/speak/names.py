"""Names for what is spoken: output_0.wav, output_1.wav, ... Two programs with one folder never take the same."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orpheus.errors import disk_errors

PREFIX, SUFFIX, MARK = "output_", ".wav", ".taken"


def output_paths(folder: Path, count: int, overwrite: bool) -> list[Path]:
    """`count` paths output_<k>.wav in `folder`: from 0 with `overwrite`, else after the highest that exists or is
    reserved."""
    names = [*folder.glob(f"{PREFIX}*{SUFFIX}"), *(mark for mark in folder.glob(f".{PREFIX}*{MARK}") if _held(mark))]
    numbers = [p.stem.lstrip(".").removeprefix(PREFIX) for p in names]
    taken = [int(number) for number in numbers if number.isdecimal()]
    first = 0 if overwrite or not taken else max(taken) + 1
    return [folder / f"{PREFIX}{first + i}{SUFFIX}" for i in range(count)]


@contextmanager
def reserved_paths(folder: Path, count: int, overwrite: bool) -> Iterator[list[Path]]:
    """`output_paths`, which no other program gets within the block. With `overwrite` nothing is reserved.

    A hidden file stands for each name until its sound is written. UserError: the folder can't be written to.
    """
    if overwrite:
        yield output_paths(folder, count, overwrite)
        return
    with disk_errors(f"can't write to {folder}", "choose another folder"):
        folder.mkdir(parents=True, exist_ok=True)
        while not (marks := _marked(paths := output_paths(folder, count, overwrite))) and count:
            pass  # another program was quicker
    try:
        yield paths
    finally:
        _remove(marks)


def _marked(paths: list[Path]) -> list[Path]:
    """The marks of all paths, made now; none if there is one already, or a file of that name."""
    marks: list[Path] = []
    for path in paths:
        mark = path.with_name(f".{path.stem}{MARK}")
        try:
            with open(mark, "x", encoding="utf-8") as file:
                file.write(_me())
        except FileExistsError:
            if not _held(mark):
                _remove([mark])
            _remove(marks)
            return []
        marks.append(mark)
    if any(path.exists() for path in paths):
        _remove(marks)
        return []
    return marks


def _me() -> str:
    return f"{os.getpid()} {socket.gethostname()}"


def _held(mark: Path) -> bool:
    """Whether the process that made a mark still runs; one on another machine is believed to."""
    try:
        number, host = mark.read_text(encoding="utf-8").split(" ", 1)
        if host == socket.gethostname():
            os.kill(int(number), 0)
    except (ProcessLookupError, FileNotFoundError):
        return False
    except (OSError, ValueError, OverflowError):
        pass  # another user's, or just being written
    return True


def _remove(marks: list[Path]) -> None:
    for mark in marks:
        with suppress(OSError):
            mark.unlink()
