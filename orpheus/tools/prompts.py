"""The texts to speak: from the command line, a file, or standard input."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from orpheus.config import DEFAULT_PROMPTS
from orpheus.errors import UserError
from orpheus.format.texts import lines_of

STDIN = "standard input"
FIRST_S, STALL_S = 0.3, 10.0  # how long a pipe may take for its first bytes, and between two reads


def read_prompts(given: Sequence[str], file: Path | None, long: bool = False) -> list[str]:
    """The texts that are given, in the file, or in standard input ('-', or text that is piped in where none is given).

    Each line is one text; `long`: all lines are one. Without any the default ones. UserError: nothing but empty lines.
    """
    lines = [text for text in given if text != "-"]
    piped = b""
    try:
        if file is not None:
            lines += lines_of(file.read_bytes(), file)
        if "-" in given:
            lines += lines_of(_stdin().read(), STDIN)
        elif not given and file is None:
            piped = piped_in()
            lines += lines_of(piped, STDIN)
    except OSError as error:
        raise UserError(f"can't read the prompts from {file or STDIN}: {error.strerror or error}") from error
    texts = [line for line in lines if line.strip()]
    if not texts and (given or file is not None or piped):
        raise UserError("there is nothing to speak: every line is empty")
    return ["\n".join(lines)] if texts and long else texts or list(DEFAULT_PROMPTS)


def piped_in() -> bytes:
    """What a pipe or a file holds that is standard input; b"" for a terminal, /dev/null, and where there is nothing.

    Never waits for long: a program that runs others may leave them a pipe into which nobody writes. UserError: text
    came, and no end of it.
    """
    try:
        descriptor = sys.stdin.fileno()
        kind = os.fstat(descriptor).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or not a real one
        return b""
    if stat.S_ISREG(kind):
        return _stdin().read()
    return _until_its_end(descriptor) if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind) else b""


def _until_its_end(descriptor: int) -> bytes:
    parts: list[bytes] = []
    while select.select([descriptor], [], [], STALL_S if parts else FIRST_S)[0]:
        part = os.read(descriptor, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)
    if parts:
        raise UserError(f"{STDIN} holds text and does not end: give '-' to wait for its end, or close it (< /dev/null)")
    print(f"{STDIN} is a pipe that holds nothing yet and is not read: give '-' to wait for it", file=sys.stderr)
    return b""


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise UserError(f"{STDIN} is closed: give the texts as arguments, or --file")
    return sys.stdin.buffer
