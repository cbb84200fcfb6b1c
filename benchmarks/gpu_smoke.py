"""One command that tries the whole GPU path, under ten minutes on an H200, with no download:

    python benchmarks/gpu_smoke.py                                   # GPU: a random model of the published size
    python benchmarks/gpu_smoke.py --device cpu --size tiny          # what can be tried without a GPU

SNAC encoding of an Elise-sized corpus; LoRA training through Unsloth and through transformers + peft, in 4 and 16 bit
and as a T4 does it; saving, reloading in a fresh process, speaking, the stop rules, WAV files; merged export; whether
Unsloth and transformers agree. Every step is a process of its own with a time limit: one that fails is recorded, and
the others go on. The results are one JSON file. Exit code 1 if a step failed.

The weights are random (data/make/make_full_size.py): figures of speed and memory are real, the speech is noise.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import RESULTS, ROOT, describe, without_paths
from benchmarks.smoke.common import Settings
from benchmarks.smoke.data import MEAN_S
from orpheus.cli import EXIT_INTERRUPTED, run
from orpheus.config import PRESETS
from orpheus.errors import UserError
from orpheus.model.provenance import write_json
from orpheus.tools import bench

EXIT_STEP_FAILED = 1
CPU_LIMIT_S = 600  # for a step without a GPU, where the cores may be shared


@dataclass(frozen=True)
class Step:
    """A step, what must have run before it, what it needs, and how long it may take."""

    name: str
    needs: tuple[str, ...] = ()
    gpu: bool = False
    unsloth: bool = False
    limit_s: float = 150


# The most important first: when the time is over, the rest is skipped.
STEPS = (
    Step("models"),
    Step("encode", ("models",)),
    Step("train_unsloth_4bit", ("models",), gpu=True, unsloth=True),
    Step("t4_unsloth", ("models",), gpu=True, unsloth=True),
    Step("t4_unsloth_1700", ("models",), gpu=True, unsloth=True),
    Step("generate_unsloth", ("train_unsloth_4bit",), gpu=True, unsloth=True),
    Step("speak_unsloth", ("train_unsloth_4bit",), gpu=True, unsloth=True),
    Step("train_unsloth_16bit", ("models",), gpu=True, unsloth=True),
    Step("train_peft_4bit", ("models",)),
    Step("speak_peft", ("train_peft_4bit",)),
    Step("train_peft_16bit", ("models",)),
    Step("merge", ("train_peft_16bit",)),
    Step("logits_transformers", ("train_peft_16bit",), gpu=True, unsloth=True),
    Step("agree_unsloth", ("logits_transformers",), gpu=True, unsloth=True),
    Step("t4_peft", ("models",), gpu=True),
)

# Argument lists for `python -m orpheus bench`, each run as a step of its own after the others, the most important
# first; {size}, {device} and {base} are filled in.
SHARED = ["--size", "{size}", "--device", "{device}"]
BENCHMARKS: list[list[str]] = [
    ["generate", *SHARED, "--base", "{base}", "--batches", "1", "4", "16", "64", "--tokens", "140"],
    ["stream", *SHARED],
    ["prepare", *SHARED],
    ["train", *SHARED, "--base", "{base}", "--load-in-4bit", "--gradient-checkpointing"],
]


@dataclass(frozen=True)
class Options:
    """Try the whole toolkit on this machine: encode, train, speak, merge, compare. Random weights of the real size."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""
    size: Literal["auto", "tiny", "full"] = "auto"
    """full: the published size; tiny: the embedded models; auto: full on a GPU."""
    unsloth: bool = True
    """--no-unsloth leaves out what needs Unsloth."""
    only: tuple[str, ...] = ()
    """Run these steps only, and those they need."""
    base: str | None = None
    """Folder of a base to use instead of making one (6.6 GB)."""
    codec: str | None = None
    """Folder of a codec to use instead of making one."""
    work: Path = Path(".cache/gpu_smoke")
    """Models, adapters and logs go here. The models are kept for the next time."""
    layers: int = 28
    """Layers of the base that is made; 28 is the published size."""
    train_steps: int | None = None
    """Optimiser steps that are timed in each training. Default: 12, tiny: 3."""
    clips: int | None = None
    """Clips to encode. Default: 1200 (3 h), tiny: 8 (12 s)."""
    tokens: int | None = None
    """Tokens to generate for a prompt. Default: 420 (5.1 s), tiny: 70."""
    minutes: float = 10.0
    """Steps that have not begun by then are skipped."""
    out: Path | None = None
    """Where the results go. Default: benchmarks/results/gpu_smoke_GPU.json."""


def plan(options: Options) -> list[Step]:
    """The steps to run, in order: all, or those of `only` and what they need. UserError for an unknown name."""
    known = {step.name: step for step in STEPS}
    unknown = [name for name in options.only if name not in known]
    if unknown:
        raise UserError(f"unknown step {', '.join(unknown)}: expected some of {', '.join(known)}")
    wanted = set(options.only or known)
    for step in reversed(STEPS):
        if step.name in wanted:
            wanted |= set(step.needs)
    return [step for step in STEPS if step.name in wanted]


def reason_to_skip(step: Step, options: Options, done: dict[str, dict[str, Any]], seconds_left: float) -> str | None:
    """Why a step can't or needn't run; None if it can."""
    if step.gpu and options.device == "cpu":
        return "needs a CUDA GPU"
    if step.unsloth and not options.unsloth:
        return "--no-unsloth was given"
    if step.unsloth and find_spec("unsloth") is None:
        return "Unsloth is not installed"
    lacking = [name for name in step.needs if done[name]["status"] != "ok"]
    if lacking:
        return f"needs {', '.join(lacking)}, which was not done"
    if seconds_left <= 0:
        return f"no time left of {options.minutes:g} minutes"
    return None


def run_step(command: list[str], log: Path, limit_s: float) -> dict[str, Any]:
    """Run a command; -> status (ok, failed), seconds, and its figures (last line of output) or why it failed."""
    started = time.perf_counter()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("w", encoding="utf-8") as errors:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=limit_s, cwd=ROOT,
                                  env=environment)  # fmt: skip
        if done.returncode == 0:
            outcome = {"status": "ok", "figures": _last_json(done.stdout)}
        else:
            outcome = {"status": "failed", "reason": _why(log, done.returncode)}
    except subprocess.TimeoutExpired:
        outcome = {"status": "failed", "reason": f"not finished after {limit_s:.0f} s; before: {_why(log, 0)}"}
    return {"status": outcome.pop("status"), "seconds": round(time.perf_counter() - started, 1), **outcome}


def _last_json(output: str) -> dict[str, Any]:
    lines = output.strip().splitlines()
    try:
        return dict(json.loads(lines[-1]))
    except (ValueError, IndexError, TypeError):
        return {}


def _why(log: Path, code: int) -> str:
    """The exception's own words: from the last line of the log that begins at the left."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    starts = [i for i, line in enumerate(lines) if re.match(r"[\w.]*(Error|Failed|Exception|error:)", line)]
    words = " ".join(lines[starts[-1] :][:3]) if starts else " ".join(lines[-2:])
    ended = f" (killed by signal {-code})" if code < 0 else ""
    return without_paths(words, log.parent)[-600:] + ended


def settings_of(options: Options) -> Settings:
    """What the steps need to know; models that were not named are those in the work folder, or the embedded ones."""
    tiny = PRESETS["tiny"] if options.size == "tiny" else None
    made = options.work.resolve() / f"models_{options.layers}_layers"
    return Settings(
        device=options.device,
        base=options.base or (tiny.base if tiny else str(made / "base")),
        codec=options.codec or (tiny.codec if tiny else str(made / "codec")),
        work=str(options.work.resolve()),
        train_steps=options.train_steps or (3 if tiny else 12),
        batch=(2, 1) if tiny else (PRESETS["orpheus-3b"].batch_size, PRESETS["orpheus-3b"].gradient_accumulation),
        clips=options.clips or (8 if tiny else 1200),
        clip_s=1.5 if tiny else MEAN_S,
        tokens=options.tokens or (70 if tiny else 420),
    )


def make_models(options: Options, settings: Settings) -> dict[str, Any]:
    """Write the stand-ins that are missing."""
    maker = [
        sys.executable,
        str(ROOT / "data" / "make" / "make_full_size.py"),
        "--layers",
        str(options.layers),
        "--overwrite",
    ]
    outcome: dict[str, Any] = {"status": "ok", "seconds": 0.0, "figures": {"base": "given", "codec": "given"}}
    for what in ("base", "codec"):
        folder = Path(getattr(settings, what))
        if getattr(options, what) is not None or options.size == "tiny":
            outcome["figures"][what] = "given" if getattr(options, what) else "embedded"
        elif any((folder / last).is_file() for last in ("model.safetensors.index.json", "model.safetensors")):
            outcome["figures"][what] = "made before"
        else:
            made = run_step([*maker, "--out", str(folder.parent), "--what", what], options.work / f"{what}.log", 300)
            if made["status"] != "ok":
                return made
            outcome["figures"][what] = f"made, {options.layers} layers" if what == "base" else "made"
            outcome["seconds"] += made["seconds"]
    return outcome


def complete(options: Options) -> Options:
    """The options with every 'auto' decided. UserError for a GPU that is not there."""
    from orpheus.model.base import pick_device

    device: Any = pick_device(options.device)
    size = options.size if options.size != "auto" else "full" if device == "cuda" else "tiny"
    return replace(options, device=device, size=size)


def main(options: Options) -> None:
    """Run the plan, write the results after each step, exit with 1 if a step failed."""
    options = complete(options)
    settings, steps = settings_of(options), plan(options)
    about = describe()
    card = (about["machine"]["gpu"] or {"name": "cpu"})["name"]
    out = options.out or RESULTS / f"gpu_smoke_{re.sub(r'[^a-z0-9]+', '_', card.lower()).strip('_')}.json"
    print(f"{card}, {options.size} models, {len(steps)} steps, at most {options.minutes:g} minutes")
    started = time.monotonic()
    done: dict[str, dict[str, Any]] = {}
    result = {**about, "note": "random weights: speed and memory are real, the speech is noise", "size": options.size,
              "settings": {k: v for k, v in asdict(settings).items() if k not in ("base", "codec", "work")},
              "steps": done}  # fmt: skip

    def record(name: str, outcome: dict[str, Any]) -> None:
        done[name] = outcome
        write_json(out, result)
        shown = outcome.get("reason") or json.dumps(outcome.get("figures"))
        print(f"{outcome['status']:8} {name:20} {outcome.get('seconds', 0):6.1f} s  {shown}", flush=True)

    try:
        for step in steps:
            reason = reason_to_skip(step, options, done, 60 * options.minutes - (time.monotonic() - started))
            if reason:
                record(step.name, {"status": "skipped", "reason": reason})
            elif step.name == "models":
                record(step.name, make_models(options, settings))
            else:
                command = [sys.executable, "-m", "benchmarks.smoke.steps", step.name, json.dumps(asdict(settings))]
                limit_s = CPU_LIMIT_S if options.device == "cpu" else step.limit_s
                record(step.name, run_step(command, options.work / f"{step.name}.log", limit_s))
        for arguments in BENCHMARKS:
            size = "tiny" if options.size == "tiny" else "orpheus-3b"
            filled = [a.format(size=size, device=settings.device, base=settings.base) for a in arguments]
            name = " ".join(["bench", arguments[0]])
            reason = None
            if 60 * options.minutes - (time.monotonic() - started) <= 0:
                reason = f"no time left of {options.minutes:g} minutes"
            elif options.only:
                reason = "not among --only"
            elif settings.device == "cpu" and arguments[0] in bench.BENCHMARKS:
                reason = "needs a CUDA GPU; make bench measures a CPU"
            if reason:
                record(name, {"status": "skipped", "reason": reason})
            else:
                command = [sys.executable, "-m", "orpheus", "bench", *filled]
                limit_s = CPU_LIMIT_S if options.device == "cpu" else 150
                record(name, run_step(command, options.work / f"{name.replace(' ', '_')}.log", limit_s))
    except KeyboardInterrupt:
        print(f"interrupted: the steps so far are in {out}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    failed = [name for name, outcome in done.items() if outcome["status"] == "failed"]
    counts = {status: sum(o["status"] == status for o in done.values()) for status in ("ok", "skipped", "failed")}
    print(f"{', '.join(f'{count} {status}' for status, count in counts.items())} in "
          f"{time.monotonic() - started:.0f} s; results: {out}, logs: {options.work}")  # fmt: skip
    if failed:
        sys.exit(EXIT_STEP_FAILED)


if __name__ == "__main__":
    run(main, Options, __doc__)
