"""Names for what is spoken: output_0.wav, output_1.wav, ... Two programs with one folder never take the same."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orpheus.audio.recordings import FORMATS, refuse_existing
from orpheus.errors import UserError, check_folder, disk_errors

PREFIX, SUFFIX, MARK = "output_", ".wav", ".taken"
SOUNDS = (*(f".{name}" for name in FORMATS), ".aac", ".m4a", ".mp4", ".wma", ".aiff", ".aif", ".oga", ".webm", ".pcm")
"""Suffixes of sound files, those too that can't be written: nobody means a folder by them."""


def output_paths(folder: Path, count: int, overwrite: bool) -> list[Path]:
    """`count` paths output_<k>.wav in `folder`: from 0 with `overwrite`, else after the highest that exists or is
    reserved."""
    names = [*folder.glob(f"{PREFIX}*{SUFFIX}"), *(mark for mark in folder.glob(f".{PREFIX}*{MARK}") if _held(mark))]
    numbers = [p.stem.lstrip(".").removeprefix(PREFIX) for p in names]
    taken = [int(number) for number in numbers if number.isdecimal()]
    first = 0 if overwrite or not taken else max(taken) + 1
    return [folder / f"{PREFIX}{first + i}{SUFFIX}" for i in range(count)]


def is_file(out: Path) -> bool:
    """Whether `out` names a sound file rather than a folder: by its suffix, unless there is such a folder."""
    return out.suffix.lower() in SOUNDS and not out.is_dir()


def check_out(out: Path, count: int, overwrite: bool, streamed: bool = False) -> None:
    """UserError if `count` speeches can't go to `out`, a folder or one sound file, told before any is made."""
    if not is_file(out):
        return check_folder(out, "--out")
    suffixes = [".wav"] if streamed else [f".{name}" for name in FORMATS]
    if out.suffix.lower() not in suffixes:
        raise UserError(f"--out is {out}: expected a folder, or a file in {', '.join(suffixes)}"
                        + (", for what is streamed" if streamed else ""))  # fmt: skip
    if count != 1:
        raise UserError(f"--out is the file {out}, and there are {count} texts: name a folder")
    check_folder(out.parent, "the folder of --out")
    refuse_existing(out, overwrite)


@contextmanager
def reserved_paths(folder: Path, count: int, overwrite: bool) -> Iterator[list[Path]]:
    """`output_paths`, which no other program gets within the block. With `overwrite` nothing is reserved.

    For one speech `folder` may be the sound file itself. A hidden file stands for each name until its sound is written.
    UserError: the folder can't be written to.
    """
    if is_file(folder):
        check_out(folder, count, overwrite)
        yield [folder]
        return
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
