"""The one exception for a user's mistake. `orpheus.cli` turns it into one line on the terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """Bad input. The message says in one line what came, what was expected and what to do."""


class MissingPackage(UserError):
    """An optional package is not installed; the message names the command that installs it."""

    def __init__(self, package: str, purpose: str, install: str | None = None) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed: "
            f"run  {install or f'pip install {package}'}"
        )


def check_folder(folder: Path, option: str) -> None:
    """UserError for a folder that can't be written to, told before the work begins; nothing is made here."""
    there = next((p for p in (folder, *folder.parents, *folder.absolute().parents) if os.path.exists(p)), Path("/"))
    if not there.is_dir():
        raise UserError(f"{option} is {folder}, and {there} is a file: name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{option} is {folder}, and {there} can't be written to: name another folder")


@contextmanager
def disk_errors(what: str, remedy: str) -> Iterator[None]:
    """What the system refuses (a full disk, a forbidden folder) becomes a UserError 'what: why; remedy'.

    Other errors pass through.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        problem = _disk_problem(error)
        if problem is None:
            raise
        raise UserError(f"{what}: {problem}; {remedy}") from error


def _disk_problem(error: BaseException) -> str | None:
    # Libraries wrap the system's error in types of their own: safetensors, tokenizers, torch's zip writer.
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error)
    wrapped = "os error" in text or "No space left" in text or "PytorchStreamWriter" in text
    return text.strip().splitlines()[0] if wrapped else None
