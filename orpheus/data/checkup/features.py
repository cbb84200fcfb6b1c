"""Everything that the findings need to know of one clip's sound, measured once and kept in the cache."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from orpheus.audio import recordings
from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.data.checkup import sounds
from orpheus.data.sources import Record
from orpheus.hearing import quality

VERSION = 1  # of what is measured: an older cache is not read


@dataclass(frozen=True)
class Features:
    """What was measured in a clip's sound. Levels are in dB of full scale."""

    seconds: float
    rate_hz: int  # as the file says
    channels_db: list[float]  # the level of each
    correlation: float  # of two channels; 1 for one
    noted: list[list[str]]  # kind and detail of what `recordings` itself found
    peak: float
    speech_db: float
    noise_db: float
    dynamics_db: float  # how far speech rises above what is always there, in the worse bands
    before_s: float  # without sound, by the clip's own noise
    after_s: float
    pause_s: float  # the longest inside
    start_db: float  # of the first and last 30 ms
    end_db: float
    zeros_s: float  # the longest time in which nothing at all changes
    all_zeros_s: float
    flat: float  # share of samples in flat tops
    crowd: float  # samples at the top for each below
    tones: list[list[float]]  # Hz, level, how far it stands out
    pitch_hz: float | None
    spectrum_db: list[float]
    fingerprint_db: list[float]

    @property
    def spoken_s(self) -> float:
        """The seconds from the first sound to the last."""
        return max(self.seconds - self.before_s - self.after_s, 0.01)

    @property
    def snr_db(self) -> float:
        """Speech above the noise of its pauses."""
        return self.speech_db - self.noise_db

    @property
    def start_level(self) -> float:
        """Of the first 30 ms, against the speech."""
        return self.start_db - self.speech_db

    @property
    def end_level(self) -> float:
        """Of the last 30 ms, against the speech."""
        return self.end_db - self.speech_db

    @cached_property
    def band(self) -> float:
        """The logarithm of the frequency above which there is practically nothing."""
        return float(np.log(sounds.band_hz(np.array(self.spectrum_db))))


def key_of(record: Record) -> str:
    """SHA-256 of what the recording holds, undecoded; of its name where there is nothing to read."""
    digest = hashlib.sha256()
    if isinstance(record.recording, Path):
        try:
            with record.recording.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256")
        except OSError:
            digest.update(str(record.recording).encode())
    elif isinstance(record.recording, bytes):
        digest.update(record.recording)
    elif isinstance(record.recording, tuple):
        digest.update(np.ascontiguousarray(record.recording[0]).tobytes() + str(record.recording[1]).encode())
    else:
        digest.update(record.name.encode())
    return digest.hexdigest()


def measure(record: Record, min_seconds: float, max_seconds: float) -> tuple[Features, np.ndarray]:
    """A clip's features and its samples, float32 [N] at 24 kHz. AudioProblem: unfit for training."""
    stored, rate_hz = record.channels(max_seconds)
    mono, noted = recordings.mixed(stored, record.name)
    samples = recordings.within_scale(recordings.resample(mono, rate_hz), mono)
    noted += recordings.check(samples, min_s=min_seconds, name=record.name)
    centred = samples - samples.mean()
    before_s, after_s, pause_s = sounds.spans(centred)
    start_db, end_db = sounds.edges_db(centred)
    zeros_s, all_zeros_s = sounds.zeros_s(mono, rate_hz)
    flat, crowd = sounds.flat_tops(mono - mono.mean())
    return Features(
        seconds=len(samples) / SAMPLE_RATE_HZ,
        rate_hz=rate_hz,
        channels_db=[sounds.level_db(channel) for channel in stored.T],
        correlation=sounds.correlation(stored),
        noted=[[finding.kind, finding.detail] for finding in noted],
        peak=float(np.abs(centred).max()),
        speech_db=quality.speech_db(centred),
        noise_db=quality.noise_db(centred),
        dynamics_db=quality.dynamics_db(centred),
        before_s=before_s,
        after_s=after_s,
        pause_s=pause_s,
        start_db=start_db,
        end_db=end_db,
        zeros_s=zeros_s,
        all_zeros_s=all_zeros_s,
        flat=flat,
        crowd=crowd,
        tones=[list(tone) for tone in sounds.steady_tones(centred)],
        pitch_hz=sounds.pitch_hz(centred),
        spectrum_db=[round(float(v), 2) for v in sounds.spectrum_db(centred)],
        fingerprint_db=[round(float(v), 2) for v in sounds.fingerprint_db(centred)],
    ), samples


class Kept:
    """What is known of clips, a small JSON file for each, named by the content of the recording."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, key: str) -> dict[str, Any]:
        """What is known of a clip; {} where there is nothing, or a damaged file, or an older version."""
        try:
            known = json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) and known.get("version") == VERSION else {}

    def save(self, key: str, known: dict[str, Any]) -> None:
        """Keep it. UserError: the folder can't be written to."""
        with recordings.atomic_path(self.folder / f"{key}.json") as partial:
            partial.write_text(json.dumps({**known, "version": VERSION}), encoding="utf-8")


def as_json(features: Features) -> dict[str, Any]:
    """For `Kept`."""
    return dataclasses.asdict(features)
