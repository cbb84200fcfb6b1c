"""How clean a recording is, on sounds whose noise is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.hearing.quality import CLEANEST_DB, dnsmos, noise_db, snr_db

RNG = np.random.default_rng(1)


def speech(noise_db: float) -> np.ndarray:
    """Bursts of tone with pauses between them, over noise so far below them."""
    times = np.arange(3 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    bursts = np.sin(2 * np.pi * 200 * times) * (times % 0.5 < 0.35) * 0.3
    noise = RNG.standard_normal(len(times)) * 0.3 / math.sqrt(2) * 10 ** (-noise_db / 20)
    return (bursts + noise).astype(np.float32)


@pytest.mark.parametrize("below_db", [10.0, 20.0, 40.0])
def test_the_noise_below_the_speech(below_db):
    assert snr_db(speech(below_db)) == pytest.approx(below_db, abs=3.0)


def test_no_noise_and_no_sound():
    assert snr_db(speech(100.0)) == pytest.approx(CLEANEST_DB, abs=5)
    assert math.isnan(snr_db(np.zeros(100, np.float32))) and noise_db(np.zeros(9600, np.float32)) == -120


def test_listeners_prefer_less_noise():
    pytest.importorskip("speechmos", reason="speechmos is not installed: requirements-dev.txt")
    clean, noisy = dnsmos(speech(60.0)), dnsmos(speech(0.0))
    assert 1 <= noisy < clean <= 5 and math.isnan(dnsmos(np.zeros(0, np.float32)))
