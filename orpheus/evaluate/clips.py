"""The recordings that a voice is measured on: those of its own voices, read and checked as for training."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from orpheus.config import CorpusOptions
from orpheus.data.clips import Unfit, check_record
from orpheus.data.seen import overlap
from orpheus.data.sources import Record, open_source
from orpheus.errors import UserError
from orpheus.format.prompt import Voices
from orpheus.speak.inference import OrpheusInference

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recording:
    """A held-out clip: its text, whose voice it is, and its samples, float32 [n] at 24 kHz."""

    name: str
    text: str
    voice: str | None
    samples: np.ndarray
    key: str = ""  # SHA-256 of its samples


def held_out(corpus: str, tts: OrpheusInference, voice: str | None = None, limit: int = 0) -> list[Recording]:
    """The clips to measure `tts` on, sorted by voice: those of `voice`, or of the voices that the model has.

    Clips without a voice fit every model. UserError: none fits, or it is not known which of several voices do.
    """
    fit = fitting(corpus, Voices(tts.trained_voices, tts.base_voices, tts.has_adapter), voice)
    clips: list[Recording] = []
    for record in (r for turn in zip_longest(*fit.values()) for r in turn if r is not None):
        if limit and len(clips) == limit:
            break
        try:
            clip, samples = check_record(record, tts.codec, tts.renderer, CorpusOptions.min_seconds, math.inf)
        except Unfit as unfit:
            log.warning("left out: %s: %s", record.name, unfit)
            continue
        clips.append(Recording(clip.name, clip.text, clip.voice, samples, clip.key))
    if not clips:
        raise UserError(f"none of the clips of {corpus} can be used: see the lines above")
    return sorted(clips, key=lambda clip: clip.voice or "")


def fitting(corpus: str, voices: Voices, voice: str | None) -> dict[str | None, list[Record]]:
    """The records of a data set by voice: of `voice`, or of the voices that a model has. Nothing is decoded.

    UserError: none fits, or it is not known which of several voices do.
    """
    source = open_source(CorpusOptions(dataset=corpus))
    records: dict[str | None, list[Record]] = defaultdict(list)
    for record in source.records():
        records[str(record.voice or "").strip() or None].append(record)
    wanted = (voice,) if voice else voices.trained if voices.adapted else voices.base
    fit = {name: part for name, part in records.items() if name is None or not wanted or name in wanted}
    has = ", ".join(sorted(name for name in records if name))
    if not fit:
        raise UserError(f"no clip of {source.name} is spoken by {', '.join(wanted)}: it has {has}; name one of them "
                        "by --voice, or other recordings by --corpus")  # fmt: skip
    if len(fit) > 1 and not wanted:
        raise UserError(f"{source.name} has several voices, and it is not known which the model was trained on: "
                        f"name one of {has} by --voice")  # fmt: skip
    return fit


def seen_before(name: str, seen: str, clips: Sequence[Recording]) -> str | None:
    """A line that warns of clips that a voice was trained on, by its `Provenance.seen`; None: none of them was."""
    recordings, texts = overlap(seen, [(clip.key, clip.text) for clip in clips])
    found = [f"{recordings} of {len(clips)} clips are recordings that {name} was trained on"] if recordings else []
    found += [f"{texts} of {len(clips)} clips have a text that {name} was trained on"] if texts else []
    if not found:
        return None
    return f"{', and '.join(found)}: the figures flatter it. Measure on recordings that were held out"
