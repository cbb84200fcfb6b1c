"""What every benchmark result carries: machine, versions, commit, command. And the memory and time of a process."""

from __future__ import annotations

import os
import platform
import re
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orpheus.model.provenance import versions

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# They shape speed, not results.
MORE_PACKAGES = ("accelerate", "numpy", "safetensors", "tokenizers", "torchaudio", "triton", "unsloth_zoo", "xformers")
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")  # those that PyTorch's kernels look for


def describe() -> dict[str, Any]:
    """Machine, versions, commit and command of this process, as plain JSON values. No host name, no paths."""
    return {
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "cpu_flags": cpu_flags(),
                    "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
                    "load_average": round(os.getloadavg()[0], 1), "system": platform.system(), "gpu": gpu()},
        "versions": {"python": platform.python_version(), **versions(), **versions(MORE_PACKAGES)},
        "commit": commit(),
        "command": command(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }  # fmt: skip


def cpu_model() -> str:
    """The processor's name, as Linux or the platform module tells it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """Which of the instruction sets that matter here the processor has."""
    found = _cpuinfo("flags").split()
    return [flag for flag in CPU_FLAGS if flag in found]


def _cpuinfo(key: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(rf"^{key}\s*: (.*)$", text, re.MULTILINE)
    return found[1] if found else ""


def gpu() -> dict[str, Any] | None:
    """Name, memory, compute capability and driver of the first CUDA GPU; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    card = torch.cuda.get_device_properties(0)
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        driver = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        driver = ""
    return {"name": card.name, "memory_gb": round(card.total_memory / 1e9, 1), "driver": driver or "unknown",
            "capability": f"{card.major}.{card.minor}", "cuda": torch.version.cuda}  # fmt: skip


def commit() -> str:
    """The commit of this checkout, with '-dirty' when files (but results) differ from it; 'unknown' outside git."""
    try:
        head, changes = (
            subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for arguments in (
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results"],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("-dirty" if changes else "")


def command() -> str:
    """The command line of this program, from the repository's root."""
    if sys.argv[0].startswith("python -m "):  # a verb of the package, which names itself so
        return " ".join([sys.argv[0], shlex.join(sys.argv[1:])]).strip()
    script = os.path.relpath(sys.argv[0], ROOT) if sys.argv[0] else ""
    return shlex.join(["python", script, *sys.argv[1:]])


def without_paths(text: str, *folders: Path) -> str:
    """`text` without the places of this machine: results are read elsewhere."""
    for folder, name in [*((folder, "WORK") for folder in folders), (ROOT, "."), (Path(sys.prefix), "VENV"),
                         (Path.home(), "~")]:  # fmt: skip
        for form in {str(folder), str(folder.resolve())} - {"/"}:
            text = text.replace(form, name)
    return text


def peak_rss_bytes() -> int:
    """The most memory this process has had, in bytes (resident set size)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def own_memory_bytes() -> int | None:
    """What this process holds now that is no file's content: weights read in place from a file don't count.

    None where the system does not tell (Linux does, in /proc/self/status).
    """
    try:
        found = re.search(r"RssAnon:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


@dataclass
class Span:
    """How long a block took: by the clock, and on the processors (all threads; less where others had them)."""

    wall_s: float = 0.0
    cpu_s: float = 0.0


@contextmanager
def timed(synchronise: Callable[[], None] | None = None) -> Iterator[Span]:
    """Times a block. `synchronise` waits for work that a GPU was only given."""
    span = Span()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield span
    finally:
        if synchronise:
            synchronise()
        span.wall_s, span.cpu_s = time.perf_counter() - wall, time.process_time() - cpu
