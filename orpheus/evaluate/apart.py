"""A voice in a process of its own: for a model in training whose layers only the back end's own code can run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Self

from orpheus.config import SamplingOptions
from orpheus.processes import environment_alone
from orpheus.speak.inference import OrpheusInference
from orpheus.speak.speech import Speech
from orpheus.speak.utterance import NoSpeech

_voice: OrpheusInference | None = None  # of the process that speaks


class Apart:
    """Speaks with a saved adapter, by plain transformers, whatever the process that asks has loaded and patched.

    A context: the process ends with it. Its memory is that of speaking: on a GPU with little room, a base in 4 bit.
    """

    def __init__(self, adapter: Path) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _open, (str(adapter), environment_alone()))

    def attempt(self, texts: Sequence[str], voice: str | None, sampling: SamplingOptions) -> list[Speech | NoSpeech]:
        """As `OrpheusInference.attempt`."""
        return self._pool.submit(_attempt, list(texts), voice, sampling).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown()


def _open(adapter: str, environment: dict[str, str]) -> None:
    global _voice
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    _voice = OrpheusInference(adapter)


def _attempt(texts: list[str], voice: str | None, sampling: SamplingOptions) -> list[Speech | NoSpeech]:
    assert _voice is not None  # `_open` ran first
    return _voice.attempt(texts, voice, sampling)
