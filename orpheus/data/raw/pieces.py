"""Where a long recording is cut: at pauses, best where a sentence ends, never in a word; lengths are spread.

Of all ways to cut the one that costs least is taken (dynamic programming). Cutting where no sentence ends costs most,
and less in a long pause; a piece may also differ from the length that is drawn for its place. The lengths drawn are
spread evenly on a logarithmic scale, the same in every run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.data.raw.listening import TAIL_S, Heard
from orpheus.data.raw.placing import by_span

LEAST_PAUSE_S = 0.2  # to cut where no sentence ends
BRIDGED_S = 0.8  # longest pause inside a piece between two sentences
BRIDGED_INSIDE_S = 1.5  # and inside a sentence
IN_WORD_PAUSE_S = 0.3  # a shorter one may lie inside a word: before a stop consonant
IN_WORD_S = 0.1  # a word that reaches over a pause by more than this at both ends, is one
HURRIED = 1.0  # the price of a cut between sentences without a pause; none from CALM_S on, where they end for sure
CALM_S = 0.6
UNFINISHED = 6.0  # the price of a cut where no sentence ends ...
UNFINISHED_PER_S = 4.0  # ... less this for each second of the pause
LEAST_UNFINISHED = 1.0
UNSURE = 8.0  # where the transcript does not tell which words lie before the cut
UNFIT = 20.0  # a piece that is too short or too long
UNLIKE = 0.1  # for each second, and each factor e that the length is off
GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of it, less their whole part, are spread evenly


@dataclass(frozen=True)
class Piece:
    """Speech from sample `start` to `end` with the words `first` to `last` (exclusive), and if it is whole sentences.

    `sure`: the words at both ends are certain.
    """

    start: int
    end: int
    first: int
    last: int
    whole: bool
    sure: bool

    @property
    def seconds(self) -> float:
        """Its length without padding."""
        return (self.end - self.start) / SAMPLE_RATE_HZ


@dataclass(frozen=True)
class _Atom:
    """Speech without a pause to cut at."""

    start: int
    end: int
    first: int
    last: int


def cut(heard: Heard, ends: Sequence[bool], sure: Sequence[bool], shortest_s: float, longest_s: float) -> list[Piece]:
    """The pieces of a recording, in order; `shortest_s` and `longest_s` without padding.

    `ends[i]`: a sentence ends after word i; `sure[i]`: the boundary after word i is certain. A piece is out of range
    only where no pause allows another.
    """
    atoms = _atoms(heard, ends)
    best: list[tuple[float, int]] = [(0.0, 0)]  # the least price of cutting before atom i, and where its piece begins
    for j in range(1, len(atoms) + 1):
        prices = []
        for i in range(j - 1, -1, -1):
            length_s = (atoms[j - 1].end - atoms[i].start) / SAMPLE_RATE_HZ
            if i < j - 1 and (length_s > longest_s or not _bridged(atoms[i], atoms[i + 1], ends)):
                break
            prices.append((best[i][0] + _unlike(length_s, i, shortest_s, longest_s), i))
        price, begin = min(prices)
        best.append((price + (_price(atoms[j - 1], atoms[j], ends, sure) if j < len(atoms) else 0.0), begin))
    found: list[Piece] = []
    j = len(atoms)
    while j:
        i = best[j][1]
        found.append(_piece(atoms, i, j, ends, sure))
        j = i
    return found[::-1]


def _atoms(heard: Heard, ends: Sequence[bool]) -> list[_Atom]:
    """The spans with words; those with too short a pause between them, or with a word across it, are one."""
    atoms: list[_Atom] = []
    words = heard.words
    for (start, end), numbers in zip(heard.spans, by_span(words, heard.spans), strict=True):
        if not numbers:
            tail = end - start < TAIL_S * SAMPLE_RATE_HZ and atoms and _s(start - atoms[-1].end) < TAIL_S
            if tail and words[atoms[-1].last - 1].end_s > _s(atoms[-1].end) - IN_WORD_S:
                atoms[-1] = _Atom(atoms[-1].start, end, atoms[-1].first, atoms[-1].last)
            continue
        atom = _Atom(start, end, numbers[0], numbers[-1] + 1)
        if atoms and _one(atoms[-1], atom, heard, ends):
            atom = _Atom(atoms[-1].start, end, atoms[-1].first, atom.last)
            atoms.pop()
        atoms.append(atom)
    return atoms


def _one(before: _Atom, after: _Atom, heard: Heard, ends: Sequence[bool]) -> bool:
    pause_s = _s(after.start - before.end)
    if pause_s >= IN_WORD_PAUSE_S:
        return False
    last, first = heard.words[before.last - 1], heard.words[after.first]
    across = last.end_s > _s(after.start) + IN_WORD_S or first.start_s < _s(before.end) - IN_WORD_S
    return across or (pause_s < LEAST_PAUSE_S and not ends[before.last - 1])


def _bridged(before: _Atom, after: _Atom, ends: Sequence[bool]) -> bool:
    return _s(after.start - before.end) <= (BRIDGED_S if ends[before.last - 1] else BRIDGED_INSIDE_S)


def _price(before: _Atom, after: _Atom, ends: Sequence[bool], sure: Sequence[bool]) -> float:
    unsure, pause_s = 0.0 if sure[before.last - 1] else UNSURE, _s(after.start - before.end)
    if ends[before.last - 1]:
        return unsure + HURRIED * max(0.0, 1 - pause_s / CALM_S)
    return unsure + max(LEAST_UNFINISHED, UNFINISHED - UNFINISHED_PER_S * pause_s)


def _unlike(length_s: float, place: int, shortest_s: float, longest_s: float) -> float:
    drawn_s = shortest_s * (longest_s / shortest_s) ** (place * GOLDEN % 1)
    unfit = UNFIT if not shortest_s <= length_s <= longest_s else 0.0
    return unfit + UNLIKE * length_s * abs(math.log(length_s / drawn_s))


def _piece(atoms: Sequence[_Atom], i: int, j: int, ends: Sequence[bool], sure: Sequence[bool]) -> Piece:
    first, last = atoms[i].first, atoms[j - 1].last
    begins, finishes = first == 0 or ends[first - 1], last == len(ends) or ends[last - 1]
    certain = (first == 0 or sure[first - 1]) and sure[last - 1]
    return Piece(atoms[i].start, atoms[j - 1].end, first, last, begins and finishes, certain)


def _s(samples: int) -> float:
    return samples / SAMPLE_RATE_HZ
