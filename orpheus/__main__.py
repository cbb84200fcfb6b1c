"""Everything the toolkit does, as `orpheus VERB ...` or `python -m orpheus VERB ...`; VERB --help lists its options."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import get_type_hints

from orpheus import __version__
from orpheus.cli import one_line_errors, run
from orpheus.errors import UserError

VERBS = {
    "prepare": ("orpheus.data.prepare", "check and encode a data set, and report what is wrong with the recordings"),
    "train": ("orpheus.tools.train", "fine-tune a voice: the same as python orpheus_sft_unsloth.py"),
    "speak": ("orpheus.tools.speak", "speak texts with a voice: the same as python inference.py"),
    "evaluate": ("orpheus.evaluate.evaluate", "measure a voice: words, pitch, tags, stopping, speed"),
    "serve": ("orpheus.serve.command", "serve a voice: OpenAI's speech API and a web page"),
    "export": ("orpheus.export.command", "write a voice as one model: safetensors, or a .gguf file for llama.cpp"),
    "bench": ("orpheus.tools.bench", "measure this machine: bench prepare, train, generate or stream"),
    "doctor": ("orpheus.tools.doctor", "what this machine has; or what is wrong with recordings: doctor my_voice"),
}
"""Each verb's module, imported only when it is chosen, and what it does. A module has `main(options: SomeOptions)`;
that of `bench` finds the module of the benchmark that is named."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb with its arguments (None: the command line's). Exit code 2 and one line for an unknown verb."""
    verb, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if verb in ("-V", "--version"):
        return print(f"orpheus {__version__}")
    if verb in ("-h", "--help"):
        print("usage: orpheus VERB [options]\n")
        print("\n".join(f"  {name:10}{line}" for name, (_, line) in VERBS.items()))
        return
    if verb == "bench":
        return measure(rest)
    with one_line_errors():
        module, options = load(verb)
    sys.argv = [f"orpheus {verb}", *rest]
    run(module.main, options, module.__doc__)


def measure(arguments: Sequence[str]) -> None:
    """Run one benchmark with its arguments; without any, list them."""
    from orpheus.tools import bench

    if not arguments or arguments[0] in ("-h", "--help"):
        return print(bench.usage())
    with one_line_errors():
        name, module = bench.find(arguments)
    sys.argv = [f"orpheus bench {name}", *arguments[1:]]
    run(module.main, get_type_hints(module.main)["options"], module.__doc__)


def load(verb: str) -> tuple[ModuleType, type]:
    """A verb's module and the class of its options. UserError: no such verb."""
    if verb not in VERBS:
        raise UserError(f"there is no verb '{verb}': expected one of {', '.join(VERBS)}")
    module = importlib.import_module(VERBS[verb][0])
    return module, get_type_hints(module.main)["options"]


if __name__ == "__main__":
    main()
