"""Where a recording is cut: at pauses, best between sentences, never in a word, in pieces of many lengths."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from orpheus.data.raw.cutting import MOST_PEAK, PAD_S, levelled, padded
from orpheus.data.raw.listening import Heard
from orpheus.data.raw.pieces import cut
from orpheus.data.raw.placing import by_span
from orpheus.hearing.whisper import Word

RATE = 24000


def heard(*spans: tuple[float, float], words_s: float = 0.5) -> Heard:
    """Spans of speech (seconds) with a word each half a second."""
    places = [(round(a * RATE), round(b * RATE)) for a, b in spans]
    words = [Word(" word", a + i * words_s, a + (i + 1) * words_s, 0.9)
             for a, b in spans for i in range(max(1, round((b - a) / words_s)))]  # fmt: skip
    return Heard(places[-1][1] + RATE, -70.0, places, words)


def pieces(recording: Heard, stops: set[int] | None = None, unsure: set[int] = frozenset(), shortest=0.7, longest=14.7):
    """The pieces in seconds; sentences end after the words `stops`, by default after the last one of each span."""
    if stops is None:
        stops = {numbers[-1] for numbers in by_span(recording.words, recording.spans) if numbers}
    ends = [i in stops for i in range(len(recording.words))]
    sure = [i not in unsure for i in range(len(recording.words))]
    return cut(recording, ends, sure, shortest, longest)


def seconds(found):
    return [(p.start / RATE, p.end / RATE) for p in found]


def test_a_sentence_between_long_pauses_is_a_piece():
    found = pieces(heard((1, 4), (6, 8), (10, 14)))
    assert seconds(found) == [(1, 4), (6, 8), (10, 14)]
    assert all(p.whole and p.sure for p in found)
    assert [(p.first, p.last) for p in found] == [(0, 6), (6, 10), (10, 18)]


def test_a_sentence_is_not_cut_at_a_comma():
    found = pieces(heard((1, 4), (4.5, 8)), stops={12})
    assert seconds(found) == [(1, 8)] and found[0].whole


def test_a_sentence_that_is_too_long_is_cut_at_its_longest_pause_and_it_is_known():
    found = pieces(heard((0, 8), (8.35, 12), (12.9, 20)), stops={36})
    assert seconds(found) == [(0, 12), (12.9, 20)]
    assert [p.whole for p in found] == [False, False]


def test_a_pause_inside_a_word_is_none():
    """Between two spans a word goes on: 'quar|ter', a stop consonant of a quarter of a second."""
    recording = heard((0, 4), (4.25, 8))
    words = [w for w in recording.words if not 3.4 < w.start_s < 4.4] + [Word(" quarter", 3.6, 4.7, 0.9)]
    recording = Heard(recording.length, -70.0, recording.spans, sorted(words, key=lambda w: w.start_s))
    ends = [True] * len(recording.words)
    assert seconds(cut(recording, ends, ends, 0.7, 5.0)) == [(0, 8)]


def test_short_sentences_are_joined_and_long_pauses_never_bridged():
    found = pieces(heard((0, 0.5), (0.9, 1.4), (3, 3.5), (3.8, 6)))
    assert seconds(found) == [(0, 1.4), (3, 6)]


def test_where_the_transcript_is_not_sure_there_is_no_cut_if_it_can_be_helped():
    recording = heard((0, 5), (5.5, 10), (10.5, 13))
    unsure = by_span(recording.words, recording.spans)[0][-1]
    found = pieces(recording, unsure={unsure})
    assert all(p.sure for p in found) and 5 not in [end for _, end in seconds(found)]


def test_lengths_are_spread_and_within_the_limits():
    spans = [(3.0 * i, 3.0 * i + 2.5) for i in range(400)]
    lengths = [p.seconds for p in pieces(heard(*spans))]
    assert min(lengths) >= 0.7 and max(lengths) <= 14.7
    counts, _ = np.histogram(lengths, [0, 3, 6, 9, 12, 15])
    assert (counts > 5).all(), counts


@pytest.mark.parametrize("seed", range(20))
def test_every_word_is_in_one_piece_and_no_piece_ends_in_a_span(seed):
    rng = np.random.default_rng(seed)
    edges = np.cumsum(rng.uniform(0.1, 4, 60))
    recording = heard(*((float(a), float(b)) for a, b in edges.reshape(-1, 2)))
    found = pieces(recording, stops=set(np.flatnonzero(rng.random(len(recording.words)) < 0.2)))
    assert [p.first for p in found[1:]] == [p.last for p in found[:-1]]
    assert (found[0].first, found[-1].last) == (0, len(recording.words))
    starts, ends = zip(*recording.spans, strict=True)
    assert {p.start for p in found} <= set(starts) and {p.end for p in found} <= set(ends)
    assert all(a.end < b.start for a, b in pairwise(found))


def test_a_word_whose_time_lies_in_a_pause_is_where_it_fits():
    """As Whisper timed them: 'conference' without length, in the middle of the pause after it."""
    times = [("You", 0.7, 0.9), ("have", 0.9, 1.1), ("been", 1.1, 1.374), ("removed", 1.374, 1.734),
             ("from", 1.734, 2.014), ("the", 2.014, 3.594), ("conference.", 3.594, 3.594), ("Whiskey.", 5.2, 5.6),
             ("Three-D", 6.454, 7.054), ("audio", 7.054, 7.654), ("enabled.", 7.654, 8.374)]  # fmt: skip
    spans = [(round(a * RATE), round(b * RATE)) for a, b in ((0.674, 2.942), (4.226, 5.15), (6.274, 8.478))]
    assert by_span([Word(f" {w}", a, b, 0.9) for w, a, b in times], spans) == [[*range(7)], [7], [8, 9, 10]]


def test_a_laugh_keeps_the_words_around_it_where_they_are():
    recording = heard((0, 4), (6, 6.6), (7, 12), words_s=0.35)
    before = [w for w in recording.words if w.end_s <= 4.1 or w.start_s >= 7]
    places = by_span(before, recording.spans)
    assert [len(p) for p in places] == [11, 0, 14]


def test_words_far_from_all_speech_are_in_some_span_too():
    words = [Word(f" {i}", 3.0 * i, 3.0 * i + 0.3, 0.9) for i in range(30)]
    found = by_span(words, [(RATE, 2 * RATE), (80 * RATE, 81 * RATE)])
    assert [number for numbers in found for number in numbers] == list(range(30))


# ---- as a clip ----


def test_padding_is_the_room_s_own_noise_and_the_same_at_both_ends():
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 1e-3, 5 * RATE).astype(np.float32)
    samples[RATE : 2 * RATE] += 0.3
    samples[round(2.1 * RATE) : 3 * RATE] += 0.3  # other speech, 0.1 s later
    pad = round(PAD_S * RATE)
    clip = padded(samples, RATE, 2 * RATE, [(round(2.1 * RATE), 3 * RATE)], -60.0)
    assert len(clip) == RATE + 2 * pad
    assert np.array_equal(clip[: pad + RATE], samples[RATE - pad : 2 * RATE])
    tail = clip[-pad:]
    assert np.abs(tail).max() < 0.01 and np.std(tail) == pytest.approx(1e-3, rel=0.2)
    assert np.array_equal(tail[: round(0.07 * RATE)], samples[2 * RATE : round(2.07 * RATE)])  # as far as it is free


def test_speech_from_edge_to_edge_is_padded_with_noise_of_its_level_and_no_zeros():
    clip = padded(np.full(RATE, 0.3, np.float32), 0, RATE, [], -60.0)
    pad = round(PAD_S * RATE)
    assert len(clip) == RATE + 2 * pad and np.count_nonzero(clip[:pad]) == pad
    assert np.std(clip[:pad]) == pytest.approx(1e-3, rel=0.1)


@pytest.mark.parametrize("gain", [0.01, 0.3, 1.0])
def test_loudness_is_set_and_no_peak_passes_the_limit(gain):
    pyloudnorm = pytest.importorskip("pyloudnorm", reason="setting the loudness needs pyloudnorm")
    samples = (gain * 0.5 * np.sin(np.arange(3 * RATE) * 2 * np.pi * 220 / RATE)).astype(np.float32)
    clip, lacking_db = levelled(samples, -23.0)
    assert pyloudnorm.Meter(RATE).integrated_loudness(clip.astype(float)) == pytest.approx(-23, abs=0.1)
    assert lacking_db == pytest.approx(0, abs=1e-3)
    samples[RATE] = gain  # a click, 20 dB above the rest
    clip, lacking_db = levelled(samples, -5.0)
    assert np.abs(clip).max() <= MOST_PEAK + 1e-6 and lacking_db > 1


@pytest.mark.parametrize("samples", [np.zeros(RATE, np.float32), np.full(200, 0.1, np.float32)])
def test_what_has_no_loudness_stays_finite(samples):
    pytest.importorskip("pyloudnorm", reason="setting the loudness needs pyloudnorm")
    assert np.isfinite(levelled(samples, -23.0)[0]).all()
