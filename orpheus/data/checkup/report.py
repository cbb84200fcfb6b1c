"""What was found, in the terminal, as JSON, and as one HTML file with players and spectrograms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orpheus.audio.pages import Html, player, spectrogram, table, tag, write_page
from orpheus.data.checkup.examine import CheckUp
from orpheus.data.checkup.facts import Fact, mix
from orpheus.data.checkup.finding import Finding, Measured, Named
from orpheus.errors import UserError

LISTED = 12  # names of a finding in the terminal
PLAYED, SHOWN = 20, 6  # clips of a finding that have a player, and a spectrogram; the page would grow without bounds
LONGEST_S = 15.0  # of a player


def summary(up: CheckUp, about: Sequence[Fact]) -> str:
    """For the terminal: a line for each fact, three for each finding."""
    lines = [f"{fact.state:6}{fact.name:13}{fact.text}" for fact in about]
    for finding in up.findings:
        names = ", ".join(named.clip.name for named in finding.clips[:LISTED])
        more = f" and {len(finding.clips) - LISTED} more" if len(finding.clips) > LISTED else ""
        lines += ["", f"{finding.severity:6}{finding.title}: {_clips(finding)}{_cost(finding)}",
                  f"      {names}{more}", f"      {finding.remedy}"]  # fmt: skip
    if not up.findings:
        lines += ["", "nothing is wrong with any clip"]
    lines += ["", *(f"not looked at: {line}" for line in up.missing)] if up.missing else []
    return "\n".join(lines)


def as_json(up: CheckUp, about: Sequence[Fact]) -> dict[str, Any]:
    """Everything, as plain JSON values."""
    return {
        "data_set": up.source.name,
        "clips": len(up.clips),
        "facts": [fact._asdict() for fact in about],
        "findings": [
            {"kind": f.kind, "severity": f.severity, "title": f.title, "remedy": f.remedy, "lost_s": round(f.lost_s, 2),
             "clips": [{"name": named.clip.name, "detail": named.detail} for named in f.clips]}
            for f in up.findings
        ],
        "not_looked_at": up.missing,
    }  # fmt: skip


def write_report(path: Path, up: CheckUp, about: Sequence[Fact]) -> Path:
    """The page. UserError: it can't be written."""
    rows: list[tuple[object, str]] = [
        (tag("span", fact.name, class_="bad" if fact.state == "note" else ""), fact.text) for fact in about
    ]
    rows += [("not looked at", line) for line in up.missing]
    listed = [tag("li", tag("a", f.title, href=f"#{_anchor(f)}"), f": {_clips(f)}{_cost(f)}") for f in up.findings]
    faults = tag("ul", *listed) if listed else tag("p", "Nothing is wrong with any clip.")
    body = [table(("", "the voice"), rows), _histogram(up), tag("h2", "Findings"), faults]
    for finding in up.findings:
        body += _section(finding)
    return write_page(path, f"Check-up of {up.source.name}", *body)


def _section(finding: Finding) -> Iterator[Html]:
    word = "worth knowing: " if finding.severity == "note" else ""
    yield tag("h2", finding.title, id=_anchor(finding))
    yield tag("p", f"{word}{_clips(finding)}{_cost(finding)}. {finding.remedy}")
    yield table(("clip", "what was found", "text", "sound"), [_row(named, i) for i, named in enumerate(finding.clips)])


def _row(named: Named, place: int) -> tuple[object, ...]:
    return named.clip.name, named.detail, named.clip.text or str(named.clip.record.text or ""), _sound(named, place)


def _sound(named: Named, place: int) -> Html:
    """A player, for the first also a spectrogram; nothing where the recording can't be read."""
    if place >= PLAYED or not isinstance(named.clip, Measured):
        return Html("")
    try:
        samples = named.clip.record.samples()
    except UserError:
        return Html("")
    samples = np.clip(samples[: int(LONGEST_S * 24_000)], -1, 1)
    heard = player(samples, f"the clip {named.clip.name}")
    return tag("div", heard, spectrogram(samples, f"spectrogram of {named.clip.name}") if place < SHOWN else "")


def _histogram(up: CheckUp) -> Html:
    counts = mix(up)
    most = max(counts.values(), default=1)
    rows = [(f"{second} s", tag("meter", str(counts[second]), value=str(counts[second] / most)), counts[second])
            for second in range(max(counts, default=0) + 1)]  # fmt: skip
    return tag("details", tag("summary", "How long the clips are"), table(("from", "", "clips"), rows))


def _anchor(finding: Finding) -> str:
    return finding.kind.replace(" ", "-")


def _clips(finding: Finding) -> str:
    return f"{len(finding.clips)} clip{'s' * (len(finding.clips) != 1)}"


def _cost(finding: Finding) -> str:
    if finding.severity == "note" and not finding.lost_s:
        return ""
    return (
        f", the remedy costs {finding.lost_s:.1f} s of recordings" if finding.lost_s else ", the remedy costs nothing"
    )
