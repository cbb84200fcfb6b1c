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
