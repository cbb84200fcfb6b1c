"""What the tests of sources, corpus and encoding share: recordings, and a codec that counts."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import soundfile

from orpheus.audio import recordings
from orpheus.codec.snac import SnacCodec
from orpheus.format.tokens import Codes
from tests.support.codec_fixtures import speech_like, tiny_snac

TEXTS = ("Hello there, <laughs> how are you?", "It rained all day.", "What, <sighs> again?")
RATE = recordings.SAMPLE_RATE_HZ


class CountingCodec:
    """The tiny SNAC; `encoded` counts the clips it was given, and Ctrl-C comes after `interrupt_after` of them."""

    def __init__(self, interrupt_after: float = math.inf, identity: str | None = None) -> None:
        self._codec = SnacCodec.from_model(tiny_snac())
        self.samples_per_frame = self._codec.samples_per_frame
        self.identity = identity or self._codec.identity
        self.interrupt_after = interrupt_after
        self.encoded = 0

    def encode(self, wavs: list[np.ndarray]) -> list[Codes]:
        if self.encoded + len(wavs) > self.interrupt_after:
            raise KeyboardInterrupt
        self.encoded += len(wavs)
        return self._codec.encode(wavs)


def recorded(count: int = 3, seconds: float = 0.4) -> list[np.ndarray]:
    """Clips that 16-bit files hold exactly, each of another length."""
    clips = (speech_like(seconds + 0.05 * i, seed=i) for i in range(count))
    return [np.frombuffer(recordings.pcm16(clip), "<i2").astype(np.float32) / 32768 for clip in clips]


def wav(samples: np.ndarray, rate_hz: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def rows(clips: list[np.ndarray] | None = None, texts: Any = TEXTS, **more: Any) -> list[dict[str, Any]]:
    clips = recorded(len(texts)) if clips is None else clips
    return [{"audio": {"bytes": wav(clip), "path": f"{i}.wav"}, "text": text} | {k: v[i] for k, v in more.items()}
            for i, (clip, text) in enumerate(zip(clips, texts, strict=True))]  # fmt: skip


def dataset(*args: Any, **more: Any) -> datasets.Dataset:
    table = datasets.Dataset.from_list(rows(*args, **more))
    return table.cast_column("audio", datasets.Audio())  # as the hub has it; reading a row would decode it


def many(count: int, texts: list[str] | None = None) -> datasets.Dataset:
    """`count` clips of half a second, quickly."""
    rng = np.random.default_rng(1)
    clips = [rng.uniform(-0.3, 0.3, RATE // 2) for _ in range(count)]
    return dataset(clips, texts or [f"Sentence number {i}." for i in range(count)])


def write_metadata(folder: Path, suffix: str, columns: tuple[str, str] = ("file_name", "text")) -> Path:
    (folder / "clips").mkdir(parents=True)
    lines = []
    for i, row in enumerate(rows()):
        (folder / "clips" / f"{i}.wav").write_bytes(row["audio"]["bytes"])
        lines.append(dict(zip(columns, (f"clips/{i}.wav", row["text"]), strict=True)))
    with open(folder / f"metadata{suffix}", "w", encoding="utf-8-sig", newline="") as file:
        if suffix == ".csv":
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(lines)
        else:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    return folder
