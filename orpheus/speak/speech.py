"""What the toolkit hands out: samples with why they ended and how they were made; save, look at, listen to."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orpheus.audio import recordings
from orpheus.format.tokens import Codes
from orpheus.model.provenance import spoken_note, write_json

TIMES = ("first_audio_s", "total_s", "tokens_per_s", "realtime_factor")


@contextmanager
def described(path: Path, describe: Callable[[], dict[str, Any]], overwrite: bool) -> Iterator[None]:
    """Around the writing of a sound file: the .json beside it that says how it was made.

    One that tells of the same speech is shared. One of another speech is refused, or with `overwrite` replaced, and
    sound files beside it, which it told of, are removed.
    """
    file = path.with_suffix(".json")
    before = _told(file)
    if before is not None and before == _lasting(describe()):
        yield
        return
    recordings.refuse_existing(file, overwrite)
    yield
    remove_stale(path)
    write_json(file, describe())


def remove_stale(path: Path) -> None:
    """Remove the other formats of what `path` held before, if a .json tells that it was a speech."""
    if {"text", "seed"} <= (_told(path.with_suffix(".json")) or {}).keys():
        for other in {path.with_suffix(f".{suffix}") for suffix in recordings.FORMATS} - {path}:
            other.unlink(missing_ok=True)


def _told(file: Path) -> dict[str, Any] | None:
    """What a .json says that is there; {} if it says nothing of a speech."""
    if not file.exists():
        return None
    try:
        return _lasting(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError):
        return {}


def _lasting(about: dict[str, Any]) -> dict[str, Any]:
    """What does not change when the same speech is made again: all but how long that took."""
    plain = json.loads(json.dumps(about, default=str))
    return {name: value for name, value in plain.items() if name not in TIMES}


@dataclass(frozen=True)
class Timings:
    """How long one utterance took, in seconds, and what that means."""

    first_audio_s: float
    total_s: float
    tokens: int

    @property
    def tokens_per_s(self) -> float:
        """Tokens drawn per second; 82 is real time."""
        return self.tokens / self.total_s if self.total_s > 0 else 0.0


@dataclass(frozen=True)
class Speech:
    """One utterance. `samples`: float32 [N] in [-1, 1], mono, at `rate_hz`."""

    text: str
    voice: str | None
    samples: np.ndarray
    codes: Codes
    finish_reason: str  # end_of_speech | out_of_range | max_new_tokens | guard
    finish_detail: str  # where and on which id, in plain language
    seed: int
    timings: Timings
    provenance: dict[str, Any] = field(default_factory=dict)
    index: int = 0  # which of the prompts of one call it is
    guard: tuple[str, ...] = ()  # what the guard found or did, in plain words; empty: nothing, or it was off
    rate_hz: int = recordings.SAMPLE_RATE_HZ

    @property
    def duration_s(self) -> float:
        """Length of the audio in seconds."""
        return len(self.samples) / self.rate_hz

    @property
    def realtime_factor(self) -> float:
        """Seconds of work per second of audio: below 1 is faster than real time."""
        return self.timings.total_s / self.duration_s

    @property
    def note(self) -> str:
        """What a file of it says of itself in its metadata: synthetic speech, by which voice, model and seed."""
        return spoken_note(self.voice, self.seed, self.provenance.get("model", {}))

    def __repr__(self) -> str:
        said = self.text if len(self.text) <= 40 else f"{self.text[:37]}..."
        return f"Speech({said!r}, {self.duration_s:.2f} s, {self.finish_reason}, seed {self.seed})"

    def describe(self) -> dict[str, Any]:
        """How it was made, as plain JSON values."""
        return {
            "text": self.text,
            "voice": self.voice,
            "seed": self.seed,
            "duration_s": round(self.duration_s, 3),
            "rate_hz": self.rate_hz,
            "finish_reason": self.finish_reason,
            "finish_detail": self.finish_detail,
            "tokens": self.timings.tokens,
            "first_audio_s": round(self.timings.first_audio_s, 4),
            "total_s": round(self.timings.total_s, 4),
            "tokens_per_s": round(self.timings.tokens_per_s, 1),
            "realtime_factor": round(self.realtime_factor, 3),
            **({"guard": list(self.guard)} if self.guard else {}),
            **self.provenance,
        }

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the audio (format by suffix: .wav, .flac, .mp3, .opus, .ogg) and a .json beside it that says how.

        Several formats of one speech share the .json. Raises UserError if the file exists, or a .json of another
        speech, and `overwrite` is False, or if it can't be written. Each is whole or not there; what is overwritten
        leaves nothing in other formats.
        """
        path = Path(path)
        with described(path, self.describe, overwrite):
            recordings.write(path, self.samples, overwrite=overwrite, comment=self.note)
        return path

    def plot(self) -> Any:
        """A matplotlib figure: the waveform above its spectrogram (0 to 12 kHz)."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 4), layout="constrained")
        wave, spectrum = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
        seconds = np.arange(len(self.samples)) / self.rate_hz
        wave.plot(seconds, self.samples, linewidth=0.5)
        wave.set(ylim=(-1, 1), ylabel="amplitude", title=self.text[:90])
        # A floor of -100 dB keeps digital silence from becoming log(0).
        padded = np.pad(self.samples, (0, max(0, 512 - len(self.samples))))
        padded = padded + 1e-7 * np.random.default_rng(0).standard_normal(len(padded))
        spectrum.specgram(padded, NFFT=512, noverlap=384, Fs=self.rate_hz, vmin=-140, vmax=-30, cmap="magma")
        spectrum.set(xlabel="seconds", ylabel="Hz", xlim=(0, max(self.duration_s, 0.05)))
        return figure

    def _repr_html_(self) -> str:
        """Jupyter's display: a player, the waveform and the spectrogram."""
        picture = io.BytesIO()
        self.plot().savefig(picture, format="png", dpi=90)
        sound = recordings.to_bytes(self.samples, comment=self.note)
        player, image = (base64.b64encode(b).decode() for b in (sound, picture.getvalue()))
        caption = f"{self.voice + ': ' if self.voice else ''}{self.text}"
        return (
            f"<figure><figcaption>{html.escape(caption)}<br><small>{self.duration_s:.2f} s, "
            f"{html.escape(self.finish_reason)}, seed {self.seed}</small></figcaption>"
            f'<audio controls src="data:audio/wav;base64,{player}"></audio><br>'
            f'<img alt="waveform and spectrogram" src="data:image/png;base64,{image}"></figure>'
        )
