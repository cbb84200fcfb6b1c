"""Who speaks: the embedded corpus has one voice, the test corpus others."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from orpheus.config import EMBEDDED, CorpusOptions
from orpheus.data.sources import open_source
from orpheus.errors import MissingPackage, UserError
from orpheus.hearing import speakers


def voices(name: str, count: int) -> dict[str, list[np.ndarray]]:
    """The first clips of each voice of an embedded data set."""
    found: dict[str, list[np.ndarray]] = {}
    for record in open_source(CorpusOptions(dataset=f"{EMBEDDED}{name}")).records():
        clips = found.setdefault(record.voice, [])
        if len(clips) < count:
            clips.append(record.samples())
    return found


def test_a_voice_is_more_like_itself_than_like_others():
    pytest.importorskip("resemblyzer", reason=f"Resemblyzer is not installed: {speakers.INSTALL}")
    embedded = {voice: [speakers.embed(clip) for clip in clips] for voice, clips in voices("test_corpus", 3).items()}
    every = np.concatenate([*embedded.values()])
    assert every.dtype == np.float32 and np.allclose(np.linalg.norm(every, axis=1), 1, atol=1e-5)
    same = [speakers.similarity(a[0], b) for a in embedded.values() for b in a[1:]]
    others = [speakers.similarity(a[0], b[0]) for n, a in embedded.items() for m, b in embedded.items() if n < m]
    assert len(embedded) > 1 and min(same) > max(others)
    assert speakers.similarity(every[0], every[0]) == pytest.approx(1)


def test_what_has_no_voice():
    pytest.importorskip("resemblyzer", reason=f"Resemblyzer is not installed: {speakers.INSTALL}")
    with pytest.raises(UserError, match="no voice"):
        speakers.embed(np.zeros(24_000, np.float32))
    assert speakers.embed(np.full(10, 0.5, np.float32)).shape == (256,)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "resemblyzer", None)
    speakers._encoder.cache_clear()
    with pytest.raises(MissingPackage, match="no-deps Resemblyzer"):
        speakers.embed(np.ones(100, np.float32))
