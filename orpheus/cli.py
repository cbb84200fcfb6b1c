"""What all command-line programs share: options from a dataclass, plain logs, one line for a user's mistake."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import io
import logging
import os
import sys
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from orpheus.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, the shell's convention

HELP_WIDTH = 100  # columns, on every terminal
FEW = 12  # a program with no more options has no experts
FOLDER = "folder"  # the recordings, named without --dataset
COMMON = ("prompts", "dataset", "corpus", "to", "adapter", "base", "preset", "voice", "file", "host", "port", "epochs",
          "max_steps", "batch_size", "learning_rate", "r", "out", "output_dir", "samples_dir", "report", "overwrite",
          "resume", "stream", "long", "guard", "temperature", "seed", "transcribe", "json", "type", "dtype", "device",
          "limit", "api_key_file")  # fmt: skip
"""Options that most people need, in the order of the help; the others are for experts."""
ALIASES: dict[str, tuple[str, ...]] = {
    "--num-train-epochs": ("--epochs",), "--per-device-train-batch-size": ("--batch-size",),
    "--train-batch-size": ("--batch-size",), "--gradient-accumulation-steps": ("--gradient-accumulation",),
    "--lr": ("--learning-rate",), "--lora-r": ("--r",), "--lora-rank": ("--r",), "--rank": ("--r",),
    "--alpha": ("--lora-alpha",), "--dropout": ("--lora-dropout",), "--max-length": ("--max-seq-length",),
    "--model-name": ("--base",), "--model-name-or-path": ("--base",), "--base-model": ("--base",),
    "--model": ("--base",), "--output-dir": ("--out",), "--output": ("--out", "--output-dir"),
    "--out": ("--output-dir",), "--data": ("--dataset",), "--dataset-name": ("--dataset",),
    "--lr-scheduler-type": ("--scheduler",), "--save-steps": ("--save-every",), "--eval-steps": ("--eval-every",),
    "--logging-steps": ("--log-every",), "--resume-from-checkpoint": ("--resume",), "--speaker": ("--voice",),
    "--lora-path": ("--adapter",), "--adapter-path": ("--adapter",), "--max-tokens": ("--max-new-tokens",),
}  # fmt: skip
"""What options are called elsewhere (transformers, peft, trl, Unsloth), and what they are called here."""
METAVAR: dict[type, str] = {str: "NAME", int: "N", float: "X", Path: "PATH"}
EXPECTED: dict[type, str] = {int: "a whole number", float: "a number", str: "a word", Path: "a path"}
SAID = {"true": True, "false": False, "none": None}

Options = TypeVar("Options")


def run(main: Callable[[Options], None], options: type[Options], description: str | None) -> None:
    """Parse the command line into `options` and run `main`; exits non-zero when it fails."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # silences a warning about forks
    logging.basicConfig(format="%(message)s")
    logging.getLogger("orpheus").setLevel(logging.INFO)
    for stream in (sys.stdout, sys.stderr):  # a text that the terminal's encoding lacks is no reason to stop
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with one_line_errors():
        main(parse(options, description=description))


def parse(options: type[Options], args: Sequence[str] | None = None, description: str | None = None) -> Options:
    """The command line (`sys.argv`, or `args`) as options, by flat names: --max-steps, not --train.max-steps.

    UserError: an option that there is not, without its value, or with one that does not fit. --help exits.
    """
    words = sys.argv[1:] if args is None else args
    _check_decoded(words)
    found = options_of(options)
    parser = _parser(found, description or options.__doc__)
    end = [*words, "--"].index("--")  # after it all are texts, even those that look like options
    given = vars(parser.parse_intermixed_args(_plain(words[:end], {o.flag: o for o in found})))
    positional = next((o.name for o in found if o.positional), FOLDER)
    given[positional] = [*given.get(positional, []), *words[end + 1 :]]
    folders = given.pop(FOLDER, [])
    if len(folders) > 1 or (folders and "dataset" in given):
        raise UserError(f"one data set is expected, and {folders[-1]!r} is another: name one")
    given |= {"dataset": folders[0]} if folders else {}
    whole = options()
    nested: dict[str, Any] = defaultdict(dict)
    for option in found:
        if option.name in given:
            value = given[option.name]
            nested[option.group][option.name] = tuple(value) if isinstance(value, list) else value
    own = nested.pop("", {})
    parts = {group: dataclasses.replace(getattr(whole, group), **values) for group, values in nested.items()}
    return dataclasses.replace(whole, **parts, **own)  # type: ignore[type-var]


@dataclass(frozen=True)
class Option:
    """One option of a program: the field of a dataclass, in the group (a field of the program's options) or in none."""

    group: str
    name: str
    kind: Any  # its type
    default: Any
    text: str  # the docstring below the field
    positional: bool = False

    @property
    def flag(self) -> str:
        """As it is written: --max-steps."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def inner(self) -> Any:
        """The type without None."""
        kinds = [kind for kind in get_args(self.kind) if kind is not type(None)]
        return kinds[0] if get_origin(self.kind) in (Union, UnionType) else self.kind

    @property
    def switch(self) -> bool:
        """Whether it is on or off, and takes no value."""
        return self.inner is bool

    def value(self, word: str) -> Any:
        """What a word means as its value. ArgumentTypeError: nothing."""
        kind = get_args(self.inner)[0] if get_origin(self.inner) is tuple else self.inner
        if word.lower() == "none" and self.inner is not self.kind and (word == "None" or self.name == "adapter"):
            return None
        if get_origin(kind) is Literal:
            if word in get_args(kind):
                return word
            raise argparse.ArgumentTypeError(f"is {word!r}, expected {' or '.join(map(str, get_args(kind)))}")
        try:
            return kind(word)
        except ValueError:
            raise argparse.ArgumentTypeError(f"is {word!r}, expected {EXPECTED[kind]}") from None


def options_of(options: type) -> list[Option]:
    """All options of a program, those of its groups too."""
    whole, found = options(), []
    hints, texts = get_type_hints(options), _texts(options)
    for part in dataclasses.fields(options):
        default = getattr(whole, part.name)
        if dataclasses.is_dataclass(default):
            inner, said = get_type_hints(type(default)), _texts(type(default))
            found += [Option(part.name, f.name, inner[f.name], getattr(default, f.name), said.get(f.name, ""))
                      for f in dataclasses.fields(default)]  # fmt: skip
        else:
            positional = bool(part.metadata.get("positional"))
            found.append(Option("", part.name, hints[part.name], default, texts.get(part.name, ""), positional))
    return found


def _texts(kind: type) -> dict[str, str]:
    """What stands below each field of a dataclass, in its source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    return {
        ast.unparse(field.target): " ".join(str(below.value.value).split())
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }


class _Parser(argparse.ArgumentParser):
    """One that raises what is wrong as a UserError."""

    flags: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        if message.startswith("unrecognized arguments: "):
            word = message.split(": ", 1)[1].split()[0]
            if not word.startswith("-"):
                raise UserError(f"{word!r} is one word too many: put quotes around what holds spaces")
            near = get_close_matches(word.partition("=")[0], self.flags, n=1)
            raise UserError(f"there is no option '{word}': "
                            + (f"did you mean {near[0]}?" if near else "--help lists them all"))  # fmt: skip
        name, _, wrong = message.partition(": ")
        name = name.split("/")[0]
        if wrong.startswith("expected "):
            raise UserError(f"{name} needs a value (--help tells which)")
        if wrong.startswith("ignored explicit"):
            raise UserError(f"{name} takes no value, and {wrong.rsplit(' ', 1)[1]} is given: leave it out")
        raise UserError(f"{name} {wrong}")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help of one width everywhere, with a metavar once."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=HELP_WIDTH)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        one = isinstance(action, _Switch) and action.default is False
        names = ", ".join(action.option_strings[: 1 if one else None])
        shown = f"{names} {self._format_args(action, '')}".strip()
        return f"{shown}, --no-adapter" if action.dest == "adapter" else shown


class _Switch(argparse.Action):
    """--x turns it on, --no-x off."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, not str(option_string).startswith("--no-"))


def _parser(found: Sequence[Option], description: str | None) -> _Parser:
    prog = sys.argv[0] if " " in sys.argv[0] else Path(sys.argv[0]).name
    names = {o.name for o in found}
    inputs = " [TEXT ...]" if "prompts" in names else " [DATASET]" * ("dataset" in names)
    parser = _Parser(prog, f"{prog} [options]{inputs}", description, formatter_class=_Help, allow_abbrev=False,
                     argument_default=argparse.SUPPRESS, add_help=False)  # fmt: skip
    parser.flags = [o.flag for o in found if not o.positional]
    common, expert = parser.add_argument_group("options"), parser.add_argument_group("options for experts")
    rank = {name: i for i, name in enumerate(COMMON)}
    for option in sorted(found, key=lambda o: rank.get(o.name, len(rank))):
        _add(common if option.name in rank or len(found) <= FEW else expert, option)
    if "dataset" in names:
        parser.add_argument(FOLDER, nargs="*", help=argparse.SUPPRESS)
    common.add_argument("--help", "-h", action="help", help="Show this and exit.")
    return parser


def _add(group: Any, option: Option) -> None:
    said = "" if option.default is None or option.switch else _shown(option.default)
    default = f" (default: {said})" if said else ""
    text = f"{option.text}{default}".replace("%", "%%")
    if option.positional:
        group.add_argument(option.name, nargs="*", metavar="TEXT", help=text)
    elif option.switch:
        off = f"--no-{option.flag[2:]}"
        group.add_argument(option.flag, off, dest=option.name, nargs=0, action=_Switch, help=text,
                           default=argparse.SUPPRESS).default = option.default  # fmt: skip
    else:
        many = get_origin(option.inner) is tuple
        kind = get_args(option.inner)[0] if many else option.inner
        metavar = "|".join(map(str, get_args(kind))) if get_origin(kind) is Literal else METAVAR[kind]
        group.add_argument(option.flag, dest=option.name, type=option.value, metavar=metavar, help=text,
                           **({"nargs": "+"} if many else {}))  # fmt: skip


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _plain(words: Sequence[str], known: Mapping[str, Option]) -> list[str]:
    """The words with options in their one spelling: hyphens, our names for those of others, --no-adapter as a value."""
    plain: list[str] = []
    for word in words:
        if len(word) > 2 and word.startswith("--") and not word[2:3].isspace():
            name, equals, value = word.partition("=")
            name = name.replace("_", "-")
            if name not in known:
                name = next((a for a in ALIASES.get(name, ()) if a in known), name)
            plain += ["--adapter=None"] if name == "--no-adapter" and "--adapter" in known else [name + equals + value]
        elif (before := known.get(plain[-1] if plain else "")) and before.switch and word.lower() in SAID:
            plain[-1:] = {True: [before.flag], False: [f"--no-{before.flag[2:]}"], None: []}[SAID[word.lower()]]
        else:
            plain.append(word)
    return plain


def _check_decoded(words: Sequence[str]) -> None:
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            place = word[max(0, error.start - 20) : error.start + 20]
            raise UserError(f"the argument {place!a} is not text in {sys.getfilesystemencoding()}: write it in "
                            "UTF-8") from None  # fmt: skip


def from_keywords(kind: type[Options], given: dict[str, Any]) -> Options:
    """Options from flat keywords named as on the command line: max_steps=20 for --max-steps 20. UserError: bad ones."""
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
