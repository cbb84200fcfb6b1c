"""The distance of two sounds: what it must not see, and what it must."""

from __future__ import annotations

import librosa
import numpy as np
import pytest

from orpheus.hearing.distance import TO_DB, mel_cepstral_db, mel_cepstrum

RATE = 24000


def vowels(*formants_hz: float, seconds: float = 0.4, pitch_hz: float = 120) -> np.ndarray:
    """A buzz through one resonance after another: float32 [n]."""
    time = np.arange(round(seconds * RATE)) / RATE
    parts = []
    for formant in formants_hz:
        overtones = np.arange(1, 80) * pitch_hz
        weights = 1 / (1 + ((overtones - formant) / 150) ** 2)
        parts.append((weights[:, None] * np.sin(2 * np.pi * overtones[:, None] * time)).sum(axis=0))
    sound = np.concatenate(parts)
    return (0.3 * sound / np.abs(sound).max()).astype(np.float32)


def test_equal_sounds_have_no_distance_at_any_level():
    sound = vowels(700, 400, 1200)
    assert mel_cepstral_db(sound, sound) == 0
    assert mel_cepstral_db(sound, 0.1 * sound) == pytest.approx(0, abs=1e-3)


def test_neither_tempo_nor_a_longer_vowel_counts_and_another_vowel_does():
    said = vowels(700, 400, 1200)
    other = mel_cepstral_db(said, vowels(700, 2000, 1200))
    assert mel_cepstral_db(said, vowels(700, 400, 1200, seconds=0.7)) < 0.15 * other
    assert mel_cepstral_db(said, librosa.effects.time_stretch(said, rate=0.8)) < 0.35 * other
    assert other < mel_cepstral_db(said, vowels(2000, 1700, 3000))


def test_it_is_the_distance_of_the_smooth_spectra_in_db():
    """A constant tilt of the cepstrum: sqrt(1/2) of its height, which is an amplitude in nepers, is the RMS."""
    sound = vowels(700)
    cepstrum = mel_cepstrum(sound)
    tilted = cepstrum + np.eye(len(cepstrum), 1)
    rms = 20 / np.log(10) * np.sqrt(np.mean(np.cos(np.linspace(0, np.pi, 100001)) ** 2))
    assert np.mean(np.linalg.norm(tilted - cepstrum, axis=0)) * TO_DB == pytest.approx(rms, rel=1e-3)


def test_silence_is_as_far_from_everything_as_can_not_be_said():
    assert mel_cepstral_db(vowels(700), np.zeros(2400, np.float32)) is None
    assert mel_cepstral_db(np.zeros(0, np.float32), vowels(700)) is None
