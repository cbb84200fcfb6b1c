"""What a folder remembers between runs: the recordings as they were, the rows as they were written, the clips."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from orpheus.audio.recordings import atomic_path
from orpheus.data.raw.table import Row, read_rows, write_rows
from orpheus.errors import UserError

TABLE, BEFORE = "decisions.csv", "decisions.before.csv"
KEPT = ".prepare"  # the folder of what is remembered
LISTED = 3


@dataclass
class Made:
    """A clip that was written: what it depends on, what is to be known of it, and why it is no good, or ''."""

    signature: str
    note: str = ""
    problem: str = ""


@dataclass
class State:
    """`recordings`: each one's key by its name; `last`: the rows as they were written; `model`: Whisper's."""

    out: Path
    model: str = ""
    recordings: dict[str, str] = field(default_factory=dict)
    clips: dict[str, Made] = field(default_factory=dict)
    last: list[Row] = field(default_factory=list)

    @property
    def table(self) -> Path:
        """The table that a person may edit."""
        return self.out / TABLE

    def heard_file(self, stem: str) -> Path:
        """Where it is kept what was heard in a recording."""
        return self.out / KEPT / "heard" / f"{stem}.jsonl"

    def save(self) -> None:
        """Write it. UserError: it can't be written."""
        known = {"model": self.model, "recordings": self.recordings,
                 "clips": {name: vars(made) for name, made in self.clips.items()}}  # fmt: skip
        with atomic_path(self.out / KEPT / "state.json") as partial:
            partial.write_text(json.dumps(known, indent=1), encoding="utf-8")
        write_rows(self.out / KEPT / "last.csv", self.last)


def load_state(out: Path) -> State:
    """What is remembered of a folder; nothing of a new one. UserError: it holds something else, or can't be read."""
    if out.is_dir() and not (out / KEPT).is_dir() and (others := sorted(path.name for path in out.iterdir())):
        more = ", ..." if len(others) > LISTED else ""
        raise UserError(f"--out is {out}, which holds something else ({', '.join(others[:LISTED])}{more}): name a new "
                        "folder")  # fmt: skip
    file = out / KEPT / "state.json"
    if not file.is_file():
        return State(out)
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        clips = {name: Made(**made) for name, made in known["clips"].items()}
        return State(out, known["model"], known["recordings"], clips, read_rows(out / KEPT / "last.csv"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file.parent} is damaged ({error}): delete it and {TABLE} to decide everything anew, or name "
                        "another --out") from error  # fmt: skip
