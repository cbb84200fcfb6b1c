"""Everything the toolkit does, as `python -m orpheus VERB ...`; `python -m orpheus VERB --help` lists its options."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import get_type_hints

from orpheus.cli import one_line_errors, run
from orpheus.errors import UserError

VERBS = {
    "prepare": ("orpheus.data.prepare", "check and encode a data set, and report what is wrong with the recordings"),
    "train": ("orpheus_sft_unsloth", "fine-tune a voice: the same as python orpheus_sft_unsloth.py"),
    "speak": ("inference", "speak texts with a voice: the same as python inference.py"),
    "evaluate": ("orpheus.evaluate.evaluate", "measure a voice: words, pitch, tags, stopping, speed"),
    "serve": ("orpheus.serve.command", "serve a voice: OpenAI's speech API and a web page"),
    "export": ("orpheus.export.command", "write a voice as one model: safetensors, or a .gguf file for llama.cpp"),
    "bench": ("orpheus.tools.bench", "measure this machine: bench prepare, train, generate or stream"),
    "doctor": ("orpheus.tools.doctor", "what this machine has, what is missing, and how to get it"),
}
"""Each verb's module, imported only when it is chosen, and what it does. A module has `main(options: SomeOptions)`;
that of `bench` finds the module of the benchmark that is named."""
SCRIPTS = ("orpheus_sft_unsloth", "inference")  # they lie beside the package, not in it


def main(arguments: Sequence[str]) -> None:
    """Run one verb with its arguments. Exit code 2 and one line for a verb that does not exist."""
    verb, *rest = arguments or ["--help"]
    if verb in ("-h", "--help"):
        print("usage: python -m orpheus VERB [options]\n")
        print("\n".join(f"  {name:10}{line}" for name, (_, line) in VERBS.items()))
        return
    if verb == "bench":
        return measure(rest)
    with one_line_errors():
        module, options = load(verb)
    sys.argv = [f"python -m orpheus {verb}", *rest]
    run(module.main, options, module.__doc__)


def measure(arguments: Sequence[str]) -> None:
    """Run one benchmark with its arguments; without any, list them."""
    from orpheus.tools import bench

    if not arguments or arguments[0] in ("-h", "--help"):
        return print(bench.usage())
    with one_line_errors():
        name, module = bench.find(arguments)
    sys.argv = [f"python -m orpheus bench {name}", *arguments[1:]]
    run(module.main, get_type_hints(module.main)["options"], module.__doc__)


def load(verb: str) -> tuple[ModuleType, type]:
    """A verb's module and the class of its options. UserError: no such verb, or its script is not at hand."""
    if verb not in VERBS:
        raise UserError(f"there is no verb '{verb}': expected one of {', '.join(VERBS)}")
    name, _ = VERBS[verb]
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in SCRIPTS:
            raise
        raise UserError(f"{name}.py is not here: run this in the project's folder, or install the project") from error
    return module, get_type_hints(module.main)["options"]


if __name__ == "__main__":
    main(sys.argv[1:])
