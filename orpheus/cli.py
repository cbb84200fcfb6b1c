"""What all command-line programs share: options from a dataclass, plain logs, one line for a user's mistake."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

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


def from_keywords(kind: type[Options], given: dict[str, Any]) -> Options:
    """Options from flat keywords named as on the command line: max_steps=20 for --max-steps 20. UserError: bad ones."""
    from difflib import get_close_matches

    from pydantic import TypeAdapter, ValidationError

    places = {name: group for group, name in _flat(kind)}
    nested: dict[str, Any] = {}
    for name, value in given.items():
        if name not in places:
            near = get_close_matches(name, places, n=1)
            raise UserError(f"there is no option '{name}'" + (f": did you mean {near[0]}?" if near else ""))
        (nested.setdefault(places[name], {}) if places[name] else nested)[name] = value
    try:
        return TypeAdapter(kind).validate_python(nested)
    except ValidationError as error:
        first = error.errors()[0]
        said = first.get("ctx", {}).get("error") or f"{first['loc'][-1]} is {first['input']!r}: {first['msg']}"
        raise UserError(str(said)) from error


def _flat(kind: type) -> list[tuple[str, str]]:
    """(group, name) of each option; those that stand beside the groups have the group ''."""
    found = []
    for part in dataclasses.fields(kind):
        group = part.default_factory if isinstance(part.default_factory, type) else None
        inner = dataclasses.fields(group) if group and dataclasses.is_dataclass(group) else None
        found += [(part.name, f.name) for f in inner] if inner else [("", part.name)]
    return found


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
