"""The one exception for a user's mistake, and the one place that turns it into a line on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, the shell's convention


class UserError(ValueError):
    """Bad input. The message says in one line what came, what was expected and what to do."""


class MissingPackage(UserError):
    """An optional package is not installed; the message names the command that installs it."""

    def __init__(self, package: str, purpose: str, install: str | None = None) -> None:
        super().__init__(f"{purpose} needs the package '{package}', which is not installed: "
                         f"run  {install or f'pip install {package}'}")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Run a command-line program: a `UserError` becomes one line and exit code 2, Ctrl-C exit code 130.

    Any other exception is a bug and keeps its traceback.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        print("interrupted: what was finished is kept", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
