"""The table of all decisions: decisions.csv, which a person may edit, and what becomes of the edits.

A row is edited if it is not as it was last written. Such rows stay as the person left them, whatever is decided anew;
a row that was taken out stays out, and one that was added is cut as it says.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from orpheus.audio.recordings import atomic_path
from orpheus.data.tables import read_text
from orpheus.errors import UserError

KEEP, DROP = "keep", "drop"
EDITED = "edited by hand"


@dataclass(frozen=True)
class Row:
    """A clip, or what was left out: from `start_s` to `end_s` of a recording somebody speaks, without the padding.

    `reason`: why it is dropped, or what to know of it. `heard`: what the recogniser heard, where that is not the text.
    """

    clip: str
    decision: str
    text: str
    start_s: float
    end_s: float
    recording: str
    voice: str = ""
    reason: str = ""
    suggested_tags: str = ""
    heard: str = ""

    @property
    def chosen(self) -> tuple[object, ...]:
        """What a person may change."""
        return self.decision, self.text, self.start_s, self.end_s, self.voice

    @property
    def kept(self) -> bool:
        """Whether it becomes a clip."""
        return self.decision == KEEP


NAMES = [field.name for field in fields(Row)]
NEEDED = ("clip", "decision", "text", "start_s", "end_s", "recording")


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write the table, whole or not at all. UserError: it can't be written."""
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(NAMES)
        writer.writerows([getattr(row, name) for name in NAMES] for row in rows)


def read_rows(path: Path) -> list[Row]:
    """The rows of a table, as a person may have left it (also Excel, which writes semicolons and decimal commas).

    UserError that names the line: a column or a number is missing, a decision is neither keep nor drop.
    """
    text = read_text(path)
    header = text.split("\n", 1)[0]
    separator = max(",;\t", key=header.count)
    try:
        lines = csv.DictReader(io.StringIO(text), delimiter=separator, strict=True)
        if lacking := [name for name in NEEDED if name not in (lines.fieldnames or ())]:
            raise UserError(f"{path} has no column '{lacking[0]}': leave its first line as it was written, or move the "
                            "file away to decide everything anew")  # fmt: skip
        return [_row(line, f"{path} line {lines.line_num}") for line in lines if any(line.values())]
    except csv.Error as error:
        raise UserError(f"{path} line {lines.line_num} is no row of a table ({error}): mend it, or move the file away "
                        "to decide everything anew") from error  # fmt: skip


def _row(line: dict[str, str | None], where: str) -> Row:
    cells = {name: (line.get(name) or "").strip() for name in NAMES}
    decision = cells["decision"].lower()
    if decision not in (KEEP, DROP):
        raise UserError(f"{where}: decision is '{cells['decision']}', expected {KEEP} or {DROP}")
    times = {name: _seconds(cells[name], f"{where}: {name}") for name in ("start_s", "end_s")}
    if decision == KEEP and not 0 <= times["start_s"] < times["end_s"]:
        raise UserError(f"{where}: it goes from {times['start_s']:g} to {times['end_s']:g} s, expected an end_s after "
                        "its start_s")  # fmt: skip
    if decision == KEEP and not cells["text"]:
        raise UserError(f"{where}: a clip to keep has no text: write what is said in it, or {DROP}")
    return Row(**(cells | {"decision": decision} | times))  # type: ignore[arg-type]


def _seconds(cell: str, where: str) -> float:
    try:
        return float(cell.replace(",", "."))
    except ValueError:
        raise UserError(f"{where} is '{cell}', expected seconds") from None


@dataclass(frozen=True)
class Merged:
    """The table as it is to be, in order; which clips a person decided, and how many rows were taken out."""

    rows: list[Row]
    edited: frozenset[str] = frozenset()
    removed: int = 0


def merge(decided: Sequence[Row], last: Sequence[Row], table: Sequence[Row] | None,
          named: Callable[[str, float], str]) -> Merged:  # fmt: skip
    """`decided` now by the program, with the edits in `table`: its rows that are not as in `last`, written before.

    `table` is None where there is none. `named` gives a clip's name by its recording and start, for rows added.
    UserError: two rows of the same clip, or an added one of an unknown recording.
    """
    if table is None:
        return Merged(list(decided))
    before, known = {row.clip: row for row in last}, {row.recording for row in decided}
    table = [row if row.clip else replace(row, clip=_added(row, known, named)) for row in table]
    if twice := [clip for clip, count in Counter(row.clip for row in table).items() if count > 1]:
        raise UserError(f"the table has two rows of the clip {twice[0]}: leave the cell 'clip' of the new one empty")
    names = {row.clip for row in table}
    edited = [row for row in table if row.recording in known and _differs(row, before.get(row.clip))]
    removed = [row for row in last if row.recording in known and row.clip not in names]
    theirs = {row.clip for row in (*edited, *removed)}
    new = [row for row in decided if row.clip not in theirs]
    rest = [row for row in new if row.clip in before or not any(_overlap(row, other) for other in (*edited, *removed))]
    marked = [replace(row, reason=EDITED) for row in edited]
    return Merged(sorted([*rest, *marked], key=lambda row: (row.recording, row.start_s)),
                  frozenset(row.clip for row in edited), len(removed))  # fmt: skip


def _differs(row: Row, before: Row | None) -> bool:
    return before is None or row.chosen != before.chosen


def _added(row: Row, known: Collection[str], named: Callable[[str, float], str]) -> str:
    if row.recording not in known:
        raise UserError(f"the table has a new row of the recording '{row.recording}', which is none of those given: "
                        f"write one of them, such as {min(known, default='')}")  # fmt: skip
    return named(row.recording, row.start_s)


def _overlap(row: Row, other: Row) -> bool:
    """Whether another row has more than half of this one's sound."""
    shared_s = min(row.end_s, other.end_s) - max(row.start_s, other.start_s)
    return other.recording == row.recording and shared_s > (row.end_s - row.start_s) / 2
