"""What all command-line programs share: options from a dataclass, plain logs, one line for a user's mistake."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from orpheus.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, the shell's convention

Options = TypeVar("Options")


def run(main: Callable[[Options], None], options: type[Options], description: str | None) -> None:
    """Parse the command line into `options` and run `main`; exits non-zero when it fails."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # silences a warning about forks
    logging.basicConfig(format="%(message)s")
    logging.getLogger("orpheus").setLevel(logging.INFO)
    with one_line_errors():
        main(parse(options, description=description))


def parse(options: type[Options], args: Sequence[str] | None = None, description: str | None = None) -> Options:
    """The command line (`sys.argv`, or `args`) as options, by flat names: --max-steps, not --train.max-steps."""
    import tyro

    return tyro.cli(
        options,
        args=plain_arguments(sys.argv[1:] if args is None else args),
        description=description,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def plain_arguments(args: Sequence[str]) -> list[str]:
    """The arguments with --no-adapter and `--adapter none`, in any case, written as `--adapter None`."""
    plain: list[str] = []
    for arg in args:
        if arg.replace("_", "-") == "--no-adapter":
            plain += ["--adapter", "None"]
        elif arg.lower() == "--adapter=none" or (plain[-1:] == ["--adapter"] and arg.lower() == "none"):
            plain += ["--adapter", "None"][plain[-1:] == ["--adapter"] :]
        else:
            plain.append(arg)
    return plain


@contextmanager
def one_line_errors() -> Iterator[None]:
    """A `UserError` becomes one line and exit code 2, Ctrl-C exit code 130; other exceptions are bugs and pass."""
    try:
        yield
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        print("interrupted: what was finished is kept", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
