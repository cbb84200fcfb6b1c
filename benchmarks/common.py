"""What the benchmarks share: models of a size, contenders that take turns, how a result is shown and kept."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

from benchmarks.machine import RESULTS, ROOT, Span, describe, timed
from orpheus.config import PRESETS, embedded_path
from orpheus.model.provenance import write_json

Size = Literal["tiny", "mid", "orpheus-3b"]
LAYERS = {"mid": 4, "orpheus-3b": 28}  # of the base; both have the published width, ids and codec
LAST = {"base": "model.safetensors.index.json", "codec": "model.safetensors"}  # written when all else is there


def model_of(size: str, what: Literal["base", "codec"]) -> str:
    """The folder of a size's base or codec: the embedded one, or random weights, made in .cache/bench where missing."""
    if size == "tiny":
        return embedded_path(getattr(PRESETS["tiny"], what))
    folder = ROOT / ".cache" / "bench" / size
    if not (folder / what / LAST[what]).is_file():
        maker = [sys.executable, str(ROOT / "data" / "make" / "make_full_size.py"), "--what", what, "--overwrite"]
        subprocess.run([*maker, "--layers", str(LAYERS[size]), "--out", str(folder)], check=True, stdout=sys.stderr)
    return str(folder / what)


def synchroniser(device: Any) -> Callable[[], None] | None:
    """What waits for a GPU's work, for `timed`; None on a CPU."""
    if str(device).split(":")[0] != "cuda":
        return None
    import torch

    return torch.cuda.synchronize


def in_turns(contenders: Mapping[str, Callable[[], Any]], rounds: int, device: Any) -> dict[str, Span]:
    """The best round of each, by the clock and on the processors. They take turns, so that what else the machine does
    falls on all; a first round, in which kernels are chosen, is not counted."""
    best: dict[str, Span] = {}
    for number in range(rounds + 1):
        for name, contend in contenders.items():
            with timed(synchroniser(device)) as span:
                contend()
            if number == 1:
                best[name] = span
            elif number:
                best[name] = Span(min(best[name].wall_s, span.wall_s), min(best[name].cpu_s, span.cpu_s))
    return best


def seconds(span: Span, device: Any) -> float:
    """What a speed-up is computed from: the clock on a GPU; on a CPU the processor seconds of all threads, which hardly
    change when others compute too."""
    return span.cpu_s if synchroniser(device) is None else span.wall_s


def show(name: str, size: str, figures: dict[str, Any], rows: list[dict[str, Any]], save: bool) -> None:
    """Print a table of the rows, the machine, and as the last line all figures as JSON; keep them if asked."""
    about = describe()
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join("-" if row[c] is None else str(row[c]) for c in columns) + " |")
    machine = about["machine"]
    print(f"\n{(machine['gpu'] or {'name': machine['cpu']})['name']}, {machine['cores']} cores, load "
          f"{machine['load_average']}; torch {about['versions'].get('torch')}; commit {about['commit'][:12]}\n"
          f"{about['command']}")  # fmt: skip
    result = {"benchmark": name, "size": size, **figures, "rows": rows, **about}
    if save:
        print(f"saved: {write_json(RESULTS / f'{name}_{size}.json', result).relative_to(ROOT)}")
    print(json.dumps(result))
