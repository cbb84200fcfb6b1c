"""The tag detector: what it finds in recordings of known tags, and what must not change its mind."""

from __future__ import annotations

import csv
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from orpheus.audio import recordings
from orpheus.codec.snac import SnacCodec
from orpheus.errors import UserError
from orpheus.hearing.tags import KNOWN_TAGS, Detection, detect_tags, pictures

DATA = Path(__file__).resolve().parents[2] / "data"
RATE_HZ = recordings.SAMPLE_RATE_HZ


@cache
def clips(corpus: str) -> list[tuple[list[str], np.ndarray]]:
    """(tags of the text, samples) of each clip of an embedded corpus."""
    with open(DATA / corpus / "metadata.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [(re.findall("<[a-z]+>", row["text"]), recordings.read(DATA / corpus / row["file_name"])) for row in rows]


def tags_of(found: list[Detection]) -> list[str]:
    return [hit.tag for hit in found]


def rates(cases: list[tuple[list[str], np.ndarray]]) -> tuple[float, float]:
    """Share of the (clip, tag) pairs found where the text has the tag, and where it has not."""
    pairs = [(tag in said, tag in tags_of(detect_tags(samples))) for said, samples in cases for tag in KNOWN_TAGS]
    right = [found for said, found in pairs if said]
    wrong = [found for said, found in pairs if not said]
    return sum(right) / len(right), sum(wrong) / len(wrong)


@pytest.mark.parametrize("corpus", ["test_corpus", "corpus"])
def test_it_finds_the_tags_of_the_originals(corpus):
    hit, false_alarm = rates(clips(corpus)[:32])
    assert hit >= 0.95 and false_alarm <= 0.02


def test_it_finds_them_after_the_codec():
    codec = SnacCodec.load("embedded:tiny_codec")
    some = clips("test_corpus")[4:16]  # every voice with and without a tag, every tag at least twice
    assert {tag for said, _ in some for tag in said} == set(KNOWN_TAGS)
    decoded = [(said, codec.decode(codec.encode([samples])[0])) for said, samples in some]
    hit, false_alarm = rates(decoded)
    assert hit >= 0.9 and false_alarm <= 0.05


def test_it_says_where_and_how_often():
    from_text = [(said, samples) for said, samples in clips("corpus")[:12] if said]
    assert any(len(said) == 2 for said, _ in from_text)
    for said, samples in from_text:
        found = detect_tags(samples)
        assert tags_of(found) == said
        for hit in found:
            assert 0 <= hit.start_s < hit.end_s <= len(samples) / RATE_HZ and 0.5 < hit.score <= 1
            inside = samples[round(hit.start_s * RATE_HZ) : round(hit.end_s * RATE_HZ)]
            edge = samples[max(0, round((hit.start_s - 0.04) * RATE_HZ)) : round((hit.start_s - 0.02) * RATE_HZ)]
            assert np.abs(inside).max() > 0.1  # the sound itself
            assert len(edge) == 0 or np.abs(edge).max() < 0.05  # the gap before it


def some() -> list[np.ndarray]:
    return [samples for _, samples in clips("test_corpus")[3:8]]  # one without a tag, one with each


@pytest.mark.parametrize("gain", [0.01, 0.3, 1.5])
def test_level_does_not_matter(gain):
    for samples in some():
        assert tags_of(detect_tags(np.clip(gain * samples, -1, 1))) == tags_of(detect_tags(samples))


@pytest.mark.parametrize(("lead", "tail"), [(1, 0), (12_345, 0), (0, 50_000), (24_000, 24_000)])
def test_silence_around_it_only_moves_the_times(lead, tail):
    for samples in some():
        alone, shifted = detect_tags(samples), detect_tags(np.pad(samples, (lead, tail)))
        assert tags_of(shifted) == tags_of(alone)
        for a, b in zip(alone, shifted, strict=True):
            assert b.start_s == pytest.approx(a.start_s + lead / RATE_HZ, abs=0.05)


def test_noise_does_not_matter():
    rng = np.random.default_rng(5)
    for samples in some():
        noise = samples.std() * 10 ** (-35 / 20) * rng.normal(size=len(samples))
        assert tags_of(detect_tags(samples + noise)) == tags_of(detect_tags(samples))


def test_a_somewhat_other_speed_and_pitch_does_not_matter():
    for said, samples in clips("test_corpus")[4:8]:
        for speed in (0.87, 1.14):
            places = np.arange(0, len(samples) - 1, speed)
            assert tags_of(detect_tags(np.interp(places, np.arange(len(samples)), samples))) == said


def test_long_audio_is_the_same_in_blocks(monkeypatch):
    (said, samples), *_ = clips("test_corpus")[4:5]
    whole = detect_tags(samples)
    monkeypatch.setattr("orpheus.hearing.tags.BLOCK", 37)
    assert detect_tags(samples) == whole and tags_of(whole) == said


def test_every_tag_has_pictures_from_silence_to_full_level():
    assert {picture.tag for picture in pictures()} == set(KNOWN_TAGS)
    for picture in pictures():
        assert (picture.power_db.max(), picture.power_db.min()) == pytest.approx((0, -30), abs=1e-6)


@given(arrays(np.float32, st.integers(0, 3000), elements=st.floats(-1, 1, width=32)))
@settings(max_examples=25, deadline=None)
def test_no_short_array_breaks_it(samples):
    for hit in detect_tags(samples):
        assert hit.tag in KNOWN_TAGS and hit.start_s <= hit.end_s


@pytest.mark.parametrize("n", [0, 1, 239, 240, 480, 24_000])
def test_silence_has_no_tags(n):
    assert detect_tags(np.zeros(n, np.float32)) == []
    assert detect_tags(np.full(n, 0.25, np.float32)) == []


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1e-3, 0.1, 1.0]))
@settings(max_examples=10, deadline=None)
def test_noise_has_no_tags(seed, level):
    assert detect_tags(level * np.random.default_rng(seed).normal(size=30_000)) == []


@pytest.mark.parametrize("samples", [np.zeros((2, 500)), np.array([0.0, np.nan]), np.float32(1)])
def test_what_is_no_clip_is_refused(samples):
    with pytest.raises(UserError, match="shape"):
        detect_tags(samples)
