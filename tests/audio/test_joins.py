"""Joined pieces: no click, a pause of natural length, one loudness, and the same samples however they were cut."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orpheus.audio.joins import FADE, GAIN_DB, LONGEST_PAUSE, NATURAL_DB, SHORTEST_PAUSE, Joiner

RATE = 24000
SILENT_DB = -55.0


def tone(seconds: float, level: float = 0.1, hz: float = 150.0) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE + 1)).astype(np.float32)


def hush(seconds: float) -> np.ndarray:
    return np.full(round(seconds * RATE), 1e-4, np.float32)


def join(pieces: list[np.ndarray], cut: int = 1000) -> list[np.ndarray]:
    """Each piece as it is heard."""
    joiner, heard = Joiner(SILENT_DB), []
    for i, piece in enumerate(pieces):
        joiner.begin(last=i + 1 == len(pieces))
        parts = [c for at in range(0, len(piece), cut) for c in joiner.push(piece[at : at + cut])] + [*joiner.end()]
        assert all(len(part) and part.dtype == np.float32 for part in parts)
        heard.append(np.concatenate([np.zeros(0, np.float32), *parts]))
    return heard


def pauses(samples: np.ndarray) -> list[int]:
    """The lengths of the silent runs inside, in samples, to within 20 ms."""
    quiet = np.abs(samples).reshape(-1, 240).max(axis=1) < 2e-3
    edges = np.flatnonzero(np.diff(np.concatenate([[0], quiet, [0]])))
    return [240 * int(b - a) for a, b in edges.reshape(-1, 2) if a > 0 and b < len(quiet)]


def whole(samples: np.ndarray) -> np.ndarray:
    return samples[: len(samples) // 240 * 240]


def test_one_piece_is_untouched():
    piece = np.concatenate([hush(0.9), tone(1.0), hush(2.0), tone(0.5, 2.0), hush(0.9)])
    (heard,) = join([piece])
    assert heard is not piece and np.array_equal(heard, piece)


def test_the_first_of_several_is_untouched_but_for_its_end():
    piece = np.concatenate([hush(0.9), tone(1.0), hush(0.7), tone(0.5)])
    first, _ = join([piece, tone(1.0)])
    assert len(first) == len(piece) and np.array_equal(first[:-FADE], piece[:-FADE]) and abs(first[-1]) < 1e-3


@pytest.mark.parametrize("before_s, after_s", [(0, 0), (0.1, 0), (0, 0.1), (0.2, 0.05), (1.5, 0), (0, 1.5), (2, 3)])
def test_pauses_have_a_natural_length(before_s, after_s):
    heard = np.concatenate(
        join([np.concatenate([tone(1.0), hush(before_s)]), np.concatenate([hush(after_s), tone(1)])])
    )
    (pause,) = pauses(whole(heard))
    assert SHORTEST_PAUSE - 2 * FADE <= pause <= LONGEST_PAUSE + 4 * FADE
    if 0.15 <= before_s + after_s <= 0.3:
        assert pause == pytest.approx((before_s + after_s) * RATE, abs=4 * FADE)


def test_silence_inside_a_piece_stays():
    piece = np.concatenate([tone(0.5), hush(1.2), tone(0.5)])
    heard = join([tone(1.0), piece, tone(1.0)])[1]
    assert abs(len(heard) - len(piece) - SHORTEST_PAUSE) < 480
    assert any(abs(pause - 1.2 * RATE) < 480 for pause in pauses(whole(heard)))


def test_there_is_no_click():
    """The largest step between two samples at the joins is no larger than those inside the pieces."""
    pieces = [tone(0.7 + 0.1 * i, 0.3, hz=90 + 7 * i) for i in range(6)]
    steps = [np.abs(np.diff(piece)).max() for piece in pieces]
    assert max(abs(a[-1] - b[0]) for a, b in pairwise(pieces)) > 2 * max(steps)  # put end to end: a click
    heard = join(pieces)
    at = np.cumsum([len(piece) for piece in heard])[:-1]
    joined = np.abs(np.diff(np.concatenate(heard)))
    near = max(joined[i - SHORTEST_PAUSE - 2000 : i + SHORTEST_PAUSE + 2000].max() for i in at)
    assert near <= 1.05 * max(steps)


def test_loudness_goes_towards_what_was_spoken_and_not_too_far():
    level = 0.1
    heard = join([tone(4, level), tone(4, level * 10 ** (4 / 20)), tone(4, level * 10 ** (-12 / 20))])

    def db(samples):
        return 20 * np.log10(np.sqrt(2) * samples[-RATE:-1000].std() / level)

    assert db(heard[0]) == pytest.approx(0, abs=0.01)
    assert db(heard[1]) == pytest.approx(NATURAL_DB, abs=0.2)  # 4 dB too loud: brought down
    assert db(heard[2]) == pytest.approx(-12 + GAIN_DB, abs=0.2)  # far too soft: only so far
    gain = np.abs(heard[1][SHORTEST_PAUSE + 2000 : 3 * RATE]).reshape(-1, 160)[:500].max(axis=1)
    assert np.all(np.abs(np.diff(20 * np.log10(gain))) < 0.5)  # smoothly


def test_what_is_natural_is_left_alone():
    pieces = [tone(2), tone(2, 0.1 * 10 ** (1.4 / 20)), tone(2, 0.1 * 10 ** (-0.7 / 20))]
    for piece, heard in zip(pieces, join(pieces), strict=True):
        assert np.abs(heard).max() == pytest.approx(np.abs(piece).max(), rel=1e-3)


def test_gain_never_clips():
    heard = join([tone(3, 0.95), np.concatenate([tone(1, 0.5), tone(0.01, 0.98), tone(2, 0.5)])])
    assert np.abs(heard[1]).max() <= 1


def test_a_piece_of_silence_adds_little():
    heard = join([tone(1.0), hush(3.0), tone(1.0)])
    assert len(heard[1]) <= LONGEST_PAUSE and len(np.concatenate(heard)) < 2.5 * RATE


PIECES = st.lists(st.lists(st.tuples(st.floats(0, 0.5), st.booleans()), max_size=4), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(PIECES, st.integers(100, 5000))
def test_how_it_is_cut_changes_nothing(plan, cut):
    pieces = [
        np.concatenate([np.zeros(0, np.float32), *(tone(s) if loud else hush(s) for s, loud in piece)])
        for piece in plan
    ]
    a, b = join(pieces, cut), join(pieces, 100_000)
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
