"""When chunks are handed out: all of them, early, and nobody waits because they were grouped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orpheus.audio.schedule import MOST_S, SHARE, Schedule, grouped

FRAME_S = 2048 / 24000
LAG_S = 0.058  # of the first chunk


def arrivals(rate: float, frames: int, jitter_s: list[float]) -> list[float]:
    """When each frame is there, for a model that speaks `rate` seconds a second, each late by its jitter."""
    times, now = [], 0.0
    for i in range(frames):
        now = max(now, i * FRAME_S / rate + jitter_s[i % len(jitter_s)])
        times.append(now)
    return times


def starved_s(deliveries: list[tuple[float, float]]) -> float:
    """How long a player has nothing to play who begins with the first delivery; (time, seconds of audio) each."""
    until, waited = deliveries[0][0], 0.0
    for at, seconds in deliveries:
        waited += max(0.0, at - until)
        until = max(until, at) + seconds
    return waited


def delivered(times: list[float]) -> list[tuple[float, float]]:
    """What the schedule makes of frames that arrive at these times; what is held at the end comes with the last."""
    schedule, out, held = Schedule(), [], 0.0
    for at in times:
        held += FRAME_S
        if schedule.due(at, FRAME_S):
            out.append((at, held))
            held = 0.0
        assert schedule.held_s == pytest.approx(held) and held <= MOST_S
        assert held == 0 or held < SHARE * schedule.lead_s(at)  # the listener has four times as much to play
    return out + ([(times[-1], held)] if held else [])


JITTER = st.lists(st.floats(0, 0.25), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([1.0, 1.05, 2.0, 10.0]), JITTER)
def test_nobody_waits_because_of_the_grouping(rate, jitter_s):
    times = arrivals(rate, 120, jitter_s)
    grouped_s, one_by_one_s = starved_s(delivered(times)), starved_s([(at, FRAME_S) for at in times])
    # Pauses are 0.25 s and a frame at most. Where a frame is held, the listener has four frames to play: 0.34 s.
    assert grouped_s <= one_by_one_s + 1e-9


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 5), min_size=2, max_size=60))
def test_whatever_comes_the_loss_is_bounded(gaps):
    """A model that pauses at random: worse off by at most what was held, and only after a pause of four times that."""
    times = np.cumsum(gaps).tolist()
    extra = starved_s(delivered(times)) - starved_s([(at, FRAME_S) for at in times])
    assert extra <= MOST_S * sum(gap > 0.25 for gap in gaps) + 1e-9
    if max(gaps) <= FRAME_S:
        assert extra <= 1e-9


def test_frame_by_frame_at_the_rate_of_speech_and_in_portions_above_it():
    assert len(delivered(arrivals(1.0, 100, [0.0]))) == 100
    fast = [round(seconds / FRAME_S) for _, seconds in delivered(arrivals(10.0, 200, [0.0]))]
    assert fast[:2] == [1, 1] and fast[-2] == 9 and fast[:-1] == sorted(fast[:-1]) and len(fast) < 45


def test_grouped_chunks_are_the_same_samples():
    clock = iter(np.arange(0, 10, 0.001).tolist())
    chunks = [np.arange(i * 2048, (i + 1) * 2048, dtype=np.float32) for i in range(40)]
    portions = list(grouped(iter(chunks), lambda: next(clock)))
    assert np.array_equal(np.concatenate(portions), np.concatenate(chunks)) and len(portions) < 20
    assert list(grouped([])) == []


def test_what_is_held_comes_before_an_error():
    def chunks():
        yield from (np.full(2048, i, np.float32) for i in range(30))
        raise KeyboardInterrupt

    clock = iter(np.arange(0, 10, 0.001).tolist())
    heard = []
    with pytest.raises(KeyboardInterrupt):
        for portion in grouped(chunks(), lambda: next(clock)):
            heard.append(portion)
    assert len(np.concatenate(heard)) == 30 * 2048 and len(heard[-1]) > 2048


def test_the_first_chunk_goes_out_before_the_second_is_asked_for():
    asked = []

    def chunks():
        for i in range(3):
            asked.append(i)
            yield np.zeros(round(LAG_S * 24000), np.float32)

    next(grouped(chunks()))
    assert asked == [0]
