"""The result of an evaluation: a row for each clip, figures over the rows, and how they are shown and saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from orpheus.audio.recordings import SAMPLE_RATE_HZ, atomic_path
from orpheus.hearing.metrics import Counted, Figure, figure, medians, ratios
from orpheus.model.provenance import write_json

KINDS = ("original", "reconstruction", "generated")
HEARD = ("wer", "wer_domain", "speaker_similarity", "dnsmos", "letters_per_s", "trailing_silence_s", "tag_hit_rate",
         "tag_false_alarm_rate")  # counted on sounds of every kind  # fmt: skip
MIDDLE = ("f0_median_hz", "f0_range_st")  # the median over sounds of every kind
COPIED = ("mel_cepstral_db",)  # of a sound against the original
SPOKEN = ("out_of_slot_rate", "end_of_speech_share", "duration_ratio", "realtime_factor")  # on generated ones alone
LABELS = {
    "wer": "word error rate",
    "wer_domain": "  with the domain's language model",
    "speaker_similarity": "speaker similarity",
    "dnsmos": "DNSMOS, 1 to 5",
    "mel_cepstral_db": "mel-cepstral distance, dB",
    "f0_median_hz": "median pitch, Hz",
    "f0_range_st": "pitch range, semitones",
    "letters_per_s": "letters a second",
    "trailing_silence_s": "silence at the end, s",
    "end_of_speech_share": "ended by end_of_speech",
    "duration_ratio": "duration, generated / original",
    "tag_hit_rate": "tags heard where asked for",
    "tag_false_alarm_rate": "tags heard where not asked for",
    "out_of_slot_rate": "tokens out of their slot",
    "realtime_factor": "real-time factor",
}


@dataclass(frozen=True)
class Heard:
    """What was measured on one sound. `counts` are (part, whole) pairs by figure, such as wer: (errors, words)."""

    seconds: float
    f0_hz: float | None
    f0_range_st: float | None = None
    transcript: str | None = None  # None: there was no recogniser
    transcript_domain: str | None = None
    tags: tuple[str, ...] | None = None  # None: there was no detector
    counts: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Take:
    """A text spoken once: how it went, and what was measured on it. `work_s`: its share of its batch's time."""

    heard: Heard
    seed: int
    tokens: int
    finish_reason: str
    finish_detail: str
    work_s: float


@dataclass(frozen=True)
class Row:
    """A held-out clip and all that was made from it."""

    name: str
    voice: str | None
    text: str
    original: Heard
    reconstruction: Heard
    takes: tuple[Take, ...]

    def heard(self, kind: str) -> list[Heard]:
        """The sounds of one of KINDS: one, or one for each take."""
        if kind == "generated":
            return [take.heard for take in self.takes]
        return [self.original if kind == "original" else self.reconstruction]


def key(name: str, kind: str) -> str:
    """What a figure is called in a report: wer_original, wer_generated_domain, tag_hit_rate, f0_median_hz_original."""
    if name.startswith("wer"):
        return f"wer_{kind}{name.removeprefix('wer')}"
    return name if kind == "generated" else f"{name}_{kind}"


def counted(rows: Sequence[Row], domain: bool) -> dict[str, Counted | None]:
    """All that was counted on these rows, by the key of its figure; None where nothing was."""

    def sums(name: str, kind: str) -> Counted | None:
        pairs = [[heard.counts.get(name, (0, 0)) for heard in row.heard(kind)] for row in rows]
        return ratios([[p for p, _ in row] for row in pairs], [[w for _, w in row] for row in pairs])

    found: dict[str, Counted | None] = {}
    for kind in KINDS:
        names = [name for name in HEARD if domain or name != "wer_domain"] + list(COPIED if kind != KINDS[0] else ())
        found |= {key(name, kind): sums(name, kind) for name in names}
        pitches = [[heard.f0_hz for heard in row.heard(kind)] for row in rows]
        ranges = [[heard.f0_range_st for heard in row.heard(kind)] for row in rows]
        found |= {key(name, kind): medians(values) for name, values in zip(MIDDLE, (pitches, ranges), strict=True)}
    return found | {name: sums(name, KINDS[2]) for name in SPOKEN}


def figures(rows: Sequence[Row], domain: bool) -> dict[str, Figure | None]:
    """Every figure over these rows by its key; None where nothing was counted."""
    return {name: figure(count) for name, count in counted(rows, domain).items()}


@dataclass(frozen=True)
class Report:
    """An evaluation. `about`: what was measured with what; `missing`: why a figure could not be had, by key."""

    rows: list[Row]
    about: dict[str, Any]
    domain: bool = False
    missing: dict[str, str] = field(default_factory=dict)
    sounds: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)  # of some rows, by kind, to be shown
    gates: dict[str, Any] = field(default_factory=dict)  # `orpheus.evaluate.gates.Gates.as_dict`

    @cached_property
    def _figures(self) -> dict[str, Figure | None]:
        return figures(self.rows, self.domain)

    def figures(self) -> dict[str, Figure | None]:
        """The figures over all clips."""
        return self._figures

    def voices(self) -> dict[str, list[Row]]:
        """The rows of each voice; empty for clips without one."""
        names = sorted({row.voice for row in self.rows if row.voice})
        return {name: [row for row in self.rows if row.voice == name] for name in names}

    def as_dict(self) -> dict[str, Any]:
        """All figures, each with its interval as NAME_ci ([low, high]), counts and identities, as JSON values."""
        return {
            **plain(self.figures()),
            "voices": {name: {"clips": len(rows), **plain(figures(rows, self.domain))}
                       for name, rows in self.voices().items()},
            "clips": len(self.rows),
            "takes": sum(len(row.takes) for row in self.rows),
            "gates": self.gates,
            "missing": self.missing,
            **self.about,
        }  # fmt: skip

    def save(self, folder: Path) -> Path:
        """Write report.json, with a row for each clip, and metrics.png into `folder`. UserError if that fails."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        with atomic_path(folder / "metrics.png") as partial:
            self.plot().savefig(partial, dpi=110)
        return write_json(folder / "report.json", {**self.as_dict(), "rows": rows})

    def plot(self) -> Any:
        """A matplotlib figure: word error rate and pitch by voice, and three spectrograms of the first clip."""
        from matplotlib.figure import Figure as Picture

        picture = Picture(figsize=(12, 6.5), layout="constrained")
        grid = picture.add_gridspec(2, 6)
        parts = {name: figures(rows, self.domain) for name, rows in (self.voices() or {"all clips": self.rows}).items()}
        _compare(picture.add_subplot(grid[0, :3]), parts, "wer", "word error rate")
        pitches = picture.add_subplot(grid[0, 3:])
        _compare(pitches, parts, "f0_median_hz", "median pitch, Hz")
        pitches.legend(loc="lower right")
        rng = np.random.default_rng(0)
        for i, kind in enumerate(KINDS):
            sound = np.pad(self.sounds.get(0, {}).get(kind, np.zeros(0, np.float32)), (0, 512))
            sound = sound + 1e-6 * rng.standard_normal(len(sound))  # digital silence has no logarithm
            axes = picture.add_subplot(grid[1, 2 * i : 2 * i + 2], title=kind, xlabel="seconds", ylabel="Hz")
            axes.specgram(sound, NFFT=512, noverlap=384, Fs=SAMPLE_RATE_HZ, vmin=-140, vmax=-30, cmap="magma")
        picture.suptitle(self.rows[0].text[:110])
        return picture


def _compare(axes: Any, parts: dict[str, dict[str, Figure | None]], name: str, label: str) -> None:
    """One figure with its intervals: a group of points for each voice, a point for each kind of sound."""
    for shift, kind in enumerate(KINDS):
        found = [part[key(name, kind)] for part in parts.values()]
        points = [(x + 0.2 * (shift - 1), figure) for x, figure in enumerate(found) if figure]
        spans = [np.abs(np.subtract(f.interval or (f.value, f.value), f.value)) for _, f in points]
        axes.errorbar([x for x, _ in points], [f.value for _, f in points],
                      yerr=np.transpose(spans) if spans else None, fmt="o", capsize=3, label=kind)  # fmt: skip
    axes.set(ylabel=label, ylim=(0, None))
    axes.set_xticks(range(len(parts)), list(parts))


def plain(found: dict[str, Figure | None]) -> dict[str, Any]:
    """The figures as JSON values, each with its interval beside it as NAME_ci: [low, high] or None."""
    values: dict[str, Any] = {}
    for name, one in found.items():
        values[name] = one.value if one else None
        values[f"{name}_ci"] = list(one.interval) if one and one.interval else None
    return values


def cell(figure: Figure | None, sign: str = "") -> str:
    """A figure with its interval, as '0.123 [0.1, 0.15]'; sign: '+' for differences."""
    if figure is None:
        return "-"
    span = f" [{figure.interval[0]:{sign}.3g}, {figure.interval[1]:{sign}.3g}]" if figure.interval else ""
    return f"{figure.value:{sign}.3g}{span}"
