"""The one exception for a user's mistake. `orpheus.cli` turns it into one line on the terminal."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input. The message says in one line what came, what was expected and what to do."""


class MissingPackage(UserError):
    """An optional package is not installed; the message names the command that installs it."""

    def __init__(self, package: str, purpose: str, install: str | None = None) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed: "
            f"run  {install or f'pip install {package}'}"
        )


def disk_problem(error: BaseException) -> str | None:
    """What the system refused (a full disk, a forbidden folder), if `error` says so; None for anything else.

    Libraries wrap the system's error in types of their own: safetensors, tokenizers ("os error 28") and torch's
    zip writer.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error)
    wrapped = "os error" in text or "No space left" in text or "PytorchStreamWriter" in text
    return text.strip().splitlines()[0] if wrapped else None
