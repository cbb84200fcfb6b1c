"""Pauses are found where they are, and a sound that fades keeps its tail."""

from __future__ import annotations

import csv
import sys
from itertools import pairwise

import numpy as np
import pytest

from orpheus.audio import recordings
from orpheus.config import DATA_DIR
from orpheus.errors import MissingPackage
from orpheus.hearing import pauses

RATE = recordings.SAMPLE_RATE_HZ
CORPUS = DATA_DIR / "corpus"

pytest.importorskip("silero_vad", reason="finding pauses needs silero-vad")


@pytest.fixture(scope="module")
def joined() -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Clips of the embedded corpus with a second of room noise around each, and where they lie."""
    rng = np.random.default_rng(3)
    with open(CORPUS / "metadata.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if "<" not in row["text"]][:6]  # a sigh is no speech
    clips = [recordings.read(CORPUS / row["file_name"]) for row in rows]
    parts, places, at = [np.zeros(RATE, np.float32)], [], RATE
    for clip in clips:
        places.append((at, at + len(clip)))
        parts += [clip, np.zeros(RATE, np.float32)]
        at += len(clip) + RATE
    samples = np.concatenate(parts)
    return samples + rng.normal(0, 3e-4, len(samples)).astype(np.float32), places


def test_every_clip_is_speech_and_every_second_between_them_a_pause(joined):
    samples, places = joined
    spans = pauses.speech_spans(samples)
    for start, end in spans:
        assert any(a - 0.1 * RATE <= start < end <= b + 0.1 * RATE for a, b in places)
    for a, b in places:
        inside = [span for span in spans if a - RATE / 2 < span[0] < b]
        assert inside and inside[0][0] - a < 0.3 * RATE and b - inside[-1][1] < 0.3 * RATE
    assert all(a[1] < b[0] for a, b in pairwise(spans))


def test_a_tail_that_fades_belongs_to_its_span(joined):
    samples, _ = joined
    spans = pauses.speech_spans(samples)
    end = spans[-1][1]
    fading = samples.copy()
    tail = np.arange(round(0.2 * RATE))
    fading[end : end + len(tail)] += (0.02 * np.exp(-tail / len(tail)) * np.sin(tail / 8)).astype(np.float32)
    assert pauses.speech_spans(fading)[-1][1] >= end + 0.15 * RATE


def test_the_room_s_noise_is_measured_in_the_pauses(joined):
    samples, _ = joined
    level = pauses.noise_db(pauses.levels_db(samples), pauses.speech_spans(samples))
    assert level == pytest.approx(20 * np.log10(3e-4), abs=2)


@pytest.mark.parametrize("samples", [
    np.zeros(0, np.float32), np.zeros(100, np.float32), np.zeros(RATE, np.float32),
    np.random.default_rng(0).normal(0, 0.01, RATE).astype(np.float32),
    np.sin(np.arange(2 * RATE) * 2 * np.pi * 440 / RATE).astype(np.float32) / 3,
], ids=["nothing", "short", "silence", "noise", "tone"])  # fmt: skip
def test_there_is_no_speech_where_nobody_speaks(samples):
    assert pauses.speech_spans(samples) == []


def test_pytorch_keeps_its_threads(joined):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        pauses.speech_spans(joined[0])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_without_the_package_its_install_command_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    with pytest.raises(MissingPackage, match="finding pauses needs .* pip install silero-vad"):
        pauses.speech_spans(np.ones(RATE, np.float32))
