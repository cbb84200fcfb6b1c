"""Voices side by side, spoken on the same clips: a column for each, and how sure their difference is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from orpheus.evaluate.report import (
    COPIED,
    HEARD,
    KINDS,
    LABELS,
    MIDDLE,
    Report,
    cell,
    counted,
    figures,
    key,
    plain,
)
from orpheus.hearing.metrics import Figure, difference

BETTER = {"wer": -1, "wer_domain": -1, "speaker_similarity": 1, "dnsmos": 1, "mel_cepstral_db": -1, "tag_hit_rate": 1,
          "tag_false_alarm_rate": -1, "end_of_speech_share": 1, "out_of_slot_rate": -1}  # fmt: skip
"""Figures of which more (1) or less (-1) is better whatever the recordings are like."""
WIDTH = 24


@dataclass(frozen=True)
class Comparison:
    """Reports on the same clips by the voices' names; the first is what the others are compared with. One is enough."""

    reports: dict[str, Report]

    @property
    def first(self) -> Report:
        """The report that the others are compared with."""
        return next(iter(self.reports.values()))

    @cached_property
    def differences(self) -> dict[str, dict[str, Figure | None]]:
        """How much the generated figures of each other voice are above those of the first, by voice and key."""
        of = {name: counted(report.rows, report.domain) for name, report in self.reports.items()}
        first, *others = of.values()
        keys = [key(name, KINDS[2]) for name in LABELS if key(name, KINDS[2]) in first]
        return {name: {k: difference(first[k], other[k]) for k in keys}
                for name, other in zip(list(of)[1:], others, strict=True)}  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """The first report's values; those of the others under `compared`, and the `differences`, each by voice."""
        values = self.first.as_dict()
        if self.differences:
            values["compared"] = {name: self.reports[name].as_dict() for name in self.differences}
            values["differences"] = {name: plain(found) for name, found in self.differences.items()}
        return values

    def columns(self) -> list[str]:
        """Names of the columns of `lines`."""
        first, *others = self.reports
        spoken = [first, *others] if others else [KINDS[2]]
        return [*KINDS[:2], *spoken, *(f"{name} - {first}" for name in others)]

    def lines(self) -> list[tuple[str, list[str]]]:
        """A line for each kind of figure: its label, and a cell for each of the columns."""
        reports = [report.figures() for report in self.reports.values()]
        lines = []
        for name, label in LABELS.items():
            own = key(name, KINDS[2])
            if own not in reports[0]:
                continue
            kinds = KINDS[:2] if name in HEARD + MIDDLE else KINDS[1:2] if name in COPIED else ()
            before = [cell(reports[0][key(name, kind)]) if kind in kinds else "" for kind in KINDS[:2]]
            after = [cell(found[own], "+") for found in self.differences.values()]
            lines.append((label, [*before, *(cell(found[own]) for found in reports), *(after)]))
        return lines

    def table(self) -> str:
        """The figures as plain text, with their intervals; what is sure between voices; a second part by speaker."""
        rows = [("", self.columns()), *self.lines()]
        width = max(WIDTH, 2 + max(len(text) for _, cells in rows for text in cells))
        lines = [f"{label:36}" + "".join(f"{text:{width}}" for text in cells) for label, cells in rows]
        lines += [self.sure(name) for name in self.differences]
        for column, report in self.reports.items():
            lines.append(f"{f'{column}: ' if self.differences else ''}gates: {report.gates['sentence']}")
            lines += [f"  {gate['verdict']}" for gate in report.gates["gates"].values()]
        shown = [*(key("wer", kind) for kind in KINDS), "f0_median_hz", "end_of_speech_share"]
        for column, report in self.reports.items():
            of = f"{column}, " if self.differences else ""
            for voice, part in report.voices().items():
                found = figures(part, report.domain)
                cells = ", ".join(f"{name} {f'{f.value:.3g}' if (f := found[name]) else '-'}" for name in shown)
                lines.append(f"{of}{voice} ({len(part)} clips): {cells}")
        return "\n".join(line.rstrip() for line in lines)

    def sure(self, name: str) -> str:
        """A sentence: in what a voice is better and worse than the first, where the interval leaves no doubt."""
        better: list[str] = []
        worse: list[str] = []
        for figure, direction in BETTER.items():
            found = self.differences[name].get(key(figure, KINDS[2]))
            if found and found.interval and (found.interval[0] > 0 or found.interval[1] < 0):
                (better if found.value * direction > 0 else worse).append(LABELS[figure].strip().split(",")[0])
        first = next(iter(self.reports))
        said = [f"{word} in {_listed(names)}" for word, names in (("better", better), ("worse", worse)) if names]
        return f"{name} is {' and '.join(said)} than {first}; what else differs may be chance." if said else (
            f"No difference between {name} and {first} is sure on these clips.")  # fmt: skip


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]


def short_names(adapters: Sequence[str | None]) -> list[str]:
    """What voices are called in a report: the last part of each adapter's folder, the whole where that is not enough.

    None, the base alone, is 'base'.
    """
    short = [Path(adapter).expanduser().resolve().name if adapter else BASE for adapter in adapters]
    return [s if short.count(s) == 1 else (adapter or BASE) for s, adapter in zip(short, adapters, strict=True)]


BASE = "base"
