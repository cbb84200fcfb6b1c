"""Which words are in which span of speech. Whisper's own times are off by a second where somebody pauses.

So the whole is looked at, and the cheapest of all ways to place the words in their order is taken (dynamic
programming): a word costs what it has to be shifted by to lie in its span, a span costs what is too much or too little
for its letters, and a pause costs where no sentence or clause ends.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.format.pieces import spoken_length
from orpheus.hearing.whisper import Word

REACH_S = 2.5  # a word is hardly ever shifted by more
FASTEST_S, SLOWEST_S = 0.04, 0.12  # of a letter, on average
# Prices, in seconds that a word is shifted by:
EMPTY, EMPTY_PER_S = 0.3, 0.3  # a span without words, and each second of it
FAST, FAST_FROM = 2.0, 1.25  # each second that its words lack, if they usually last longer than 1.25 times as long
SLOW, SLOW_FROM = 0.5, 0.5  # each second that they leave empty, if they usually last less than half as long
UNSTOPPED, PAUSE_S = 0.5, 0.4  # a pause of more than 0.4 s after a word without a stop or a comma

Span = tuple[int, int]  # from sample to sample, at 24 kHz


def by_span(words: Sequence[Word], spans: Sequence[Span]) -> list[list[int]]:
    """For each span the numbers of the words in it, in order; every word is in one, if there are spans."""
    if not spans or not words:
        return [[] for _ in spans]
    spans_s = [(start / SAMPLE_RATE_HZ, end / SAMPLE_RATE_HZ) for start, end in spans]
    usual_s = _usual_s(words, spans_s)
    prices: dict[int, float] = {0: 0.0}  # how many words the spans so far may have, and the least price of it
    steps: list[dict[int, int]] = []  # for each span: how many there were before it, by how many there are after it
    for number in range(len(spans)):
        best: dict[int, tuple[float, int]] = {}
        for first, price in prices.items():
            for stop, more in _ways(first, number, words, spans_s, usual_s):
                if price + more < best.get(stop, (math.inf, 0))[0]:
                    best[stop] = price + more, first
        prices = {stop: price for stop, (price, _) in best.items()}
        steps.append({stop: first for stop, (_, first) in best.items()})
    found: list[list[int]] = []
    stop = len(words)
    for step in reversed(steps):
        found.append(list(range(step[stop], stop)))
        stop = step[stop]
    return found[::-1]


def _ways(first: int, number: int, words: Sequence[Word], spans_s: Sequence[tuple[float, float]],
          usual_s: Sequence[float]) -> Iterator[tuple[int, float]]:  # fmt: skip
    """What the span may have of the words from `first` on: up to which one, and its price."""
    start_s, end_s = spans_s[number]
    least = len(words) if number + 1 == len(spans_s) else _beginning_before(words, spans_s[number + 1][0] - REACH_S)
    pause = number > 0 and start_s - spans_s[number - 1][1] > PAUSE_S
    shifts = UNSTOPPED if pause and first and words[first - 1].text[-1:].isalnum() else 0.0
    for stop in range(first, len(words) + 1):
        if stop > first:
            word = words[stop - 1]
            if stop > least and word.start_s > end_s + REACH_S:
                return
            shifts += max(0.0, start_s - word.start_s, word.end_s - end_s)
        if stop >= least:
            yield stop, shifts + _misfit(end_s - start_s, usual_s[stop] - usual_s[first])


def _beginning_before(words: Sequence[Word], at_s: float) -> int:
    return bisect_left(words, at_s, key=lambda word: word.start_s)


def _usual_s(words: Sequence[Word], spans_s: Sequence[tuple[float, float]]) -> list[float]:
    """How long the first 0, 1, ... words usually last together, at the speaker's own rate."""
    letters = [0, *accumulate(max(1, spoken_length(word.text)) for word in words)]
    rate_s = sum(end - start for start, end in spans_s) / letters[-1]
    return [min(SLOWEST_S, max(FASTEST_S, rate_s)) * count for count in letters]


def _misfit(lasts_s: float, usual_s: float) -> float:
    """The price of words that usually last `usual_s` in a span: slow speech is likelier than fast."""
    if not usual_s:
        return EMPTY + EMPTY_PER_S * lasts_s
    return FAST * max(0.0, usual_s - FAST_FROM * lasts_s) + SLOW * max(0.0, SLOW_FROM * lasts_s - usual_s)
