"""What is found, and the voice that it is found in: each clip as it was measured, and what is usual in all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Literal

import numpy as np

from orpheus.data.checkup.features import Features
from orpheus.data.sources import Record
from orpheus.data.usual import FAR, LEAST_RANGES, pace
from orpheus.hearing.speakers import similarity

LEAST = 20  # clips from which a voice's own limits are taken; smaller corpora have absolute ones only


@dataclass(frozen=True, eq=False)
class Clip:
    """One row of the data set: its checked text, what was measured, and what was heard; or why it is left out."""

    record: Record
    key: str
    text: str = ""
    voice: str | None = None
    sound: Features | None = None  # None: unfit
    unfit: tuple[str, str] | None = None  # reason and detail
    heard: str | None = None  # what a recogniser wrote down
    embedding: np.ndarray | None = None  # float32 [256], who speaks
    mos: float | None = None  # DNSMOS

    @property
    def name(self) -> str:
        """As the data set calls it."""
        return self.record.name

    @property
    def seconds(self) -> float:
        """Its length; 0 for an unfit one."""
        return self.sound.seconds if self.sound else 0.0


@dataclass(frozen=True, eq=False)
class Measured(Clip):
    """A clip that is fit to train on."""

    sound: Features  # type: ignore[misc]


@dataclass(frozen=True, eq=False)
class Voice:
    """One speaker's clips that are fit to train on, and what is usual in them."""

    name: str | None
    clips: Sequence[Measured]
    language: str

    def far(self, name: str, least_range: float) -> tuple[float, float]:
        """What lies far below and far above the usual of a feature (Tukey); no limits in a small corpus."""
        return self._fences(name, least_range)

    def usual(self, name: str) -> float:
        """The median of a feature; NaN where no clip has it."""
        values = self._values(name)
        return float(np.median(values)) if len(values) else float("nan")

    def share_over(self, name: str, limit: float) -> float:
        """Which share of the clips has a feature over the limit; 0 in a small corpus."""
        values = self._values(name)
        return float((values > limit).mean()) if len(values) >= LEAST else 0.0

    @cache  # noqa: B019 (a voice lives as long as the program)
    def _fences(self, name: str, least_range: float) -> tuple[float, float]:
        values = self._values(name)
        if len(values) < LEAST:
            return -np.inf, np.inf
        low, high = np.percentile(values, [25, 75])
        margin = FAR * max(high - low, least_range)
        return float(low - margin), float(high + margin)

    @cache  # noqa: B019
    def _values(self, name: str) -> np.ndarray:
        values = [getattr(clip, name) if hasattr(clip, name) else getattr(clip.sound, name) for clip in self.clips]
        known = np.array([np.nan if value is None else value for value in values], np.float64)
        return known[np.isfinite(known)]

    @cached_property
    def rate_hz(self) -> int | None:
        """The rate that nearly all files have; None where there are several."""
        ((rate_hz, count),) = Counter(clip.sound.rate_hz for clip in self.clips).most_common(1)
        return rate_hz if count >= 0.8 * len(self.clips) and len(self.clips) >= 5 else None

    @cached_property
    def spectrum_db(self) -> np.ndarray:
        """The usual spectrum [BANDS]."""
        return np.median([clip.sound.spectrum_db for clip in self.clips], axis=0)

    @cached_property
    def embedding(self) -> np.ndarray | None:
        """The middle of the embeddings, of unit length: a few strangers don't move it."""
        known = [clip.embedding for clip in self.clips if clip.embedding is not None]
        if not known:
            return None
        middle = np.median(known, axis=0)
        return middle / np.linalg.norm(middle)

    @cached_property
    def paces(self) -> dict[int, float]:
        """By the clip's id: its seconds over those that its text should take; {} in a small corpus."""
        if len(self.clips) < LEAST:
            return {}
        spoken = [max(clip.sound.spoken_s - max(clip.sound.pause_s - 0.3, 0), 0.05) for clip in self.clips]
        _, ratios = pace([clip.text for clip in self.clips], spoken)
        return {id(clip): float(ratio) for clip, ratio in zip(self.clips, ratios, strict=True)}

    @cached_property
    def pace_limits(self) -> tuple[float, float]:
        """What lies far below and far above the usual pace."""
        low, high = np.percentile(np.log(list(self.paces.values()) or [1.0]), [25, 75])
        margin = FAR * max(high - low, LEAST_RANGES["ratio"])
        return float(np.exp(low - margin)), float(np.exp(high + margin))

    @cached_property
    def likeness(self) -> dict[int, float]:
        """By the clip's id: how like its speaker is to the voice."""
        middle = self.embedding
        return {id(clip): similarity(clip.embedding, middle) for clip in self.clips
                if clip.embedding is not None and middle is not None}  # fmt: skip


@dataclass(frozen=True)
class Named:
    """A clip that a finding names, what exactly was found, and what the remedy costs."""

    clip: Clip
    detail: str
    lost_s: float


@dataclass(frozen=True)
class Check:
    """One kind of finding. `judge` says what is wrong with a clip of a voice, or None."""

    kind: str
    title: str
    remedy: str
    judge: Callable[[Measured, Voice], str | None]
    lost_s: Callable[[Measured], float] = lambda clip: clip.seconds  # by the remedy: leaving it out
    severity: Literal["fault", "note"] = "fault"
    explains: frozenset[str] = frozenset()  # other kinds that follow from this one and are not named beside it


@dataclass(frozen=True)
class Finding:
    """All clips with one fault, or (a note) with something worth knowing."""

    kind: str
    title: str
    remedy: str
    severity: Literal["fault", "note"]
    clips: list[Named] = field(default_factory=list)

    @property
    def lost_s(self) -> float:
        """What the remedy costs, in seconds of recordings."""
        return sum(named.lost_s for named in self.clips)
