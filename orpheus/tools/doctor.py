"""What this machine has; or, with a data set, what is wrong with the recordings, and how to mend it.

    orpheus doctor                                  # exit code 0 if training on the embedded preset can work
    orpheus doctor my_voice                         # a summary, and voice_report.html with every clip that was found
    orpheus doctor my_voice --language fr --whisper-model small

What needs a package that is not installed is skipped, and the report says so.
"""

from __future__ import annotations

import importlib
import logging
import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from orpheus.config import HUB_BASE, HUB_CODEC, PRESETS, embedded_path
from orpheus.hearing.speakers import INSTALL
from orpheus.tools.checkup import DoctorOptions, check_up

ROOT = Path(__file__).resolve().parents[2]
OPTIONAL = {
    "unsloth": ("faster training on an NVIDIA GPU", "pip install -r requirements.txt -c constraints.txt"),
    "faster-whisper": ("word error rates and transcripts by Whisper", "pip install faster-whisper"),
    "pocketsphinx": ("the same without a download, far less well", "pip install pocketsphinx"),
    "Resemblyzer": ("finding speakers that don't belong", INSTALL),
    "speechmos": ("what listeners would say of a recording", "pip install speechmos onnxruntime requests"),
}
"""Packages that the embedded preset does without: what each is for, and how to get it."""
LOADED = ("torch", "transformers", "peft", "trl", "snac")  # a version alone does not say that these can be imported
NEEDED_GIB = 4.0  # `make demo` takes 3.5


class Line(NamedTuple):
    """One line of the screen; `missing` is what the embedded preset can't do without."""

    state: Literal["ok", "missing", "note"]
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.state:8}{self.name:18}{self.text}"


def main(options: DoctorOptions) -> None:
    """Examine the data set that is named; else print the screen, with exit code 1 if something is missing."""
    if options.corpus.dataset:
        return check_up(options)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of an optional package as peft imports it
    lines = [*examine()]
    print("\n".join(map(str, lines)))
    missing = [line.name for line in lines if line.state == "missing"]
    print(f"\nthe embedded preset can't be trained here without {', '.join(missing)}" if missing
          else "\nthe embedded preset can be trained here: orpheus train --preset tiny")  # fmt: skip
    if missing:
        sys.exit(1)


def examine() -> Iterator[Line]:
    """Every line, from the machine to the models."""
    version = platform.python_version()
    yield Line("ok" if sys.version_info >= (3, 11) else "missing", "Python", f"{version}; 3.11 or newer is needed")
    yield from _packages()
    yield _gpu()
    yield _memory()
    for what in ("base", "codec", "dataset"):
        folder = Path(embedded_path(getattr(PRESETS["tiny"], what)))
        yield Line("ok" if folder.is_dir() else "missing", f"embedded {what}", str(folder))
    for name in (HUB_BASE, HUB_CODEC):
        yield _hub(name)
    yield Line("note", "flite, espeak", "not needed: flite only to make the embedded recordings anew")


def _packages() -> Iterator[Line]:
    from packaging.requirements import Requirement

    file = ROOT / "requirements-cpu.txt"
    asked = file.read_text(encoding="utf-8").splitlines() if file.is_file() else metadata.requires("orpheus-lora") or []
    for line in filter(None, (line.partition("#")[0].strip() for line in asked)):
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate({"extra": "serve"}):
            continue  # of an extra that the embedded preset does without
        text = line.partition(";")[0].strip()
        found = _version(wanted.name)
        if found is None:
            yield Line("missing", wanted.name, f"pip install '{text}'")
        elif problem := _import_problem(wanted.name):
            yield Line("missing", wanted.name, f"{found} is installed, but can't be imported: {problem}")
        elif wanted.specifier.contains(found, prereleases=True):
            yield Line("ok", wanted.name, found)
        else:
            yield Line("note", wanted.name, f"{found}; tested with {wanted.specifier}: pip install '{text}'")
    for name, (purpose, install) in OPTIONAL.items():
        found = _version(name)
        yield Line("ok", name, found) if found else Line("note", name, f"not installed; for {purpose}: {install}")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _import_problem(package: str) -> str | None:
    """Why a package that is installed can't be used (a torchvision that does not fit breaks peft), or None."""
    if package not in LOADED:
        return None
    try:
        importlib.import_module(package)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None


def _gpu() -> Line:
    try:
        import torch
    except (ImportError, OSError):
        return Line("note", "GPU", "unknown without torch")
    if not torch.cuda.is_available():
        return Line(
            "note", "GPU", "none that PyTorch can use: the embedded preset trains on the CPU, Orpheus-3B hardly"
        )
    free, total = torch.cuda.mem_get_info()
    return Line("ok", "GPU", f"{torch.cuda.get_device_name()}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free")


def _memory() -> Line:
    """Free memory where the system tells it (Linux), else the whole."""
    if not hasattr(os, "sysconf"):
        return Line("note", "memory", "unknown on this system")
    name = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    available = os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    info = Path("/proc/meminfo")
    if info.is_file():  # counts what the system's caches would give back
        fields = dict(line.split(":") for line in info.read_text(encoding="ascii").splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    gib = available / 2**30
    enough = "" if gib >= NEEDED_GIB else f"; the embedded preset takes about {NEEDED_GIB:g}: close other programs"
    return Line("note" if enough else "ok", "memory", f"{gib:.1f} GiB available, {os.cpu_count()} cores{enough}")


def _hub(name: str) -> Line:
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return Line("note", "hub cache", f"{name}: unknown without huggingface_hub")
    cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    return Line(
        "note", "hub cache", f"{name}: " + ("there" if cached else f"not there; fetch it with  hf download {name}")
    )
