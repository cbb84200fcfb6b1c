"""What is heard in a long recording: where somebody speaks, which words, which sounds without a word.

    samples ─► spans of speech ─► stretches that fit Whisper's window, cut at long pauses ─► words with their times
            ─► sounds: speech that no word covers, and what is loud between the spans

It is kept stretch by stretch in a file of JSON lines: who interrupts it loses one stretch, and who changes how the
recording is cut hears nothing twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from orpheus.audio.recordings import SAMPLE_RATE_HZ, atomic_path
from orpheus.data.raw.placing import Span, by_span
from orpheus.hearing.pauses import STEP, levels_db, noise_db, speech_spans
from orpheus.hearing.whisper import DESCRIBED, Word

STRETCH_S = 28.0  # Whisper hears 30 s at a time
CONTEXT_S = 0.2  # heard with a stretch, before and after it
SOUND_S = 0.25  # a sound without a word is at least as long; a breath in passing is shorter
UNCOVERED_S = 0.5  # speech between two words that is longer than this is a sound of its own ...
WORD_S = 0.3  # ... if the words, that long each, leave room for it: their times are not exact
LOUD_DB = 15.0  # above the noise: what lies between the spans and is a sound
BELOW_SPEECH_DB = 30.0  # and no further below the speech
TAIL_S = 0.3  # a shorter span without a word, close to one with a word, is that word's last sound
VERSION = 1  # of what is kept


class Ear(Protocol):
    """Hears words and names sounds, as `hearing.whisper.Whisper` does."""

    def listen(self, samples: np.ndarray) -> list[Word]: ...
    def describe(self, samples: np.ndarray) -> list[str]: ...


@dataclass(frozen=True)
class Sound:
    """A sound without a word, in samples; `name` is what Whisper calls it ('laughs'), or ''."""

    start: int
    end: int
    name: str


@dataclass(frozen=True)
class Heard:
    """A recording of `length` samples at 24 kHz: `spans` of speech, `words` in order, `sounds` without a word."""

    length: int
    noise_db: float
    spans: list[Span]
    words: list[Word]
    sounds: list[Sound] = field(default_factory=list)


def recall(file: Path, key: str) -> Heard | None:
    """What was heard to the end, if it is kept in `file` under this key."""
    head, words, sounds = _kept(file, key)
    if head is None or sounds is None:
        return None
    return _heard(head, words, sounds)


def listen(samples: np.ndarray, file: Path, key: str, ear: Ear, going: Callable[[], bool] = lambda: True,
           done: Callable[[float, float], None] = lambda s, of: None) -> Heard | None:  # fmt: skip
    """Hear samples, float32 [n] at 24 kHz, and keep it in `file`; goes on where an earlier call stopped.

    `going` is asked before each stretch; None if it said no. `done(seconds, of_s)` is told after each.
    """
    head, words, _ = _kept(file, key)
    if head is None:
        spans = speech_spans(samples)
        head = {"key": key, "length": len(samples), "spans": spans, "noise_db": noise_db(levels_db(samples), spans)}
        with atomic_path(file) as partial:
            partial.write_text(json.dumps(head) + "\n", encoding="utf-8")
    spans = [(a, b) for a, b in head["spans"]]
    stretches = list(_stretches(spans))
    whole_s = sum(b - a for a, b in stretches) / SAMPLE_RATE_HZ
    for number, (start, end) in enumerate(stretches):
        if number not in words:
            if not going():
                return None
            words[number] = _words_in(samples, start, end, ear)
            _keep(file, {"stretch": number, "words": [astuple(word) for word in words[number]]})
        done((end - start) / SAMPLE_RATE_HZ, whole_s)
    heard = _heard(head, words, [])
    sounds = [] if not going() else list(_sounds(samples, heard, ear))
    if not going():
        return None
    _keep(file, {"sounds": [astuple(sound) for sound in sounds]})
    return _heard(head, words, sounds)


def _heard(head: dict[str, Any], words: dict[int, list[Word]], sounds: list[Sound]) -> Heard:
    spans = [(int(a), int(b)) for a, b in head["spans"]]
    in_order = [word for number in sorted(words) for word in words[number]]
    return Heard(int(head["length"]), float(head["noise_db"]), spans, in_order, sounds)


def _kept(file: Path, key: str) -> tuple[dict[str, Any] | None, dict[int, list[Word]], list[Sound] | None]:
    """The head, the words of each stretch and the sounds, as far as they are kept; a last line cut short is none."""
    words: dict[int, list[Word]] = {}
    head, sounds = None, None
    for row in _rows(file):
        if "key" in row:
            head = row if row["key"] == key else None
        elif head is not None and "stretch" in row:
            words[row["stretch"]] = [Word(*word) for word in row["words"]]
        elif head is not None and "sounds" in row:
            sounds = [Sound(*sound) for sound in row["sounds"]]
    return head, words if head else {}, sounds if head else None


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def _keep(file: Path, row: dict[str, Any]) -> None:
    with open(file, "a", encoding="utf-8") as kept:
        kept.write(f"\n{json.dumps(row)}\n")  # a new line first: the one before may have been cut short


def _stretches(spans: Sequence[Span]) -> Iterator[Span]:
    """Spans together as long as they fit, cut at the longest pause of the second half."""
    most = round(STRETCH_S * SAMPLE_RATE_HZ)
    held: list[Span] = []
    for span in spans:
        while held and span[1] - held[0][0] > most:
            pauses = [(b[0] - a[1], i) for i, (a, b) in enumerate(zip(held, [*held[1:], span], strict=True), start=1)]
            _, cut = max(pauses[len(pauses) // 2 :])
            yield held[0][0], held[cut - 1][1]
            held = held[cut:]
        held.append(span)
    if held:
        yield held[0][0], held[-1][1]


def _words_in(samples: np.ndarray, start: int, end: int, ear: Ear) -> list[Word]:
    begin = max(0, start - round(CONTEXT_S * SAMPLE_RATE_HZ))
    heard = ear.listen(samples[begin : end + round(CONTEXT_S * SAMPLE_RATE_HZ)])
    at_s = begin / SAMPLE_RATE_HZ
    return [Word(w.text, round(w.start_s + at_s, 3), round(w.end_s + at_s, 3), round(w.probability, 3))
            for w in heard if not DESCRIBED.fullmatch(w.text.strip())]  # fmt: skip


def _sounds(samples: np.ndarray, heard: Heard, ear: Ear) -> Iterator[Sound]:
    levels = levels_db(samples)
    for start, end, spoken in sorted([*_uncovered(heard), *_between(heard, levels)]):
        names = ear.describe(samples[start:end]) if spoken else []
        yield Sound(start, end, names[0] if names else "")


def _uncovered(heard: Heard) -> Iterator[tuple[int, int, bool]]:
    """Speech, as the detector says, that no word covers."""
    for (start, end), numbers in zip(heard.spans, by_span(heard.words, heard.spans), strict=True):
        inside = [heard.words[n] for n in numbers]
        least = round((UNCOVERED_S if inside else SOUND_S) * SAMPLE_RATE_HZ)
        if end - start < least + len(inside) * WORD_S * SAMPLE_RATE_HZ:
            continue
        edges = [start, *(round(t * SAMPLE_RATE_HZ) for w in inside for t in (w.start_s, w.end_s)), end]
        for a, b in zip(edges[::2], edges[1::2], strict=True):
            if b - a >= least and not (not inside and _tail(heard, start, end)):
                yield a, b, True


def _tail(heard: Heard, start: int, end: int) -> bool:
    """Whether a span without a word is the last sound of one: short, and a word reaches into it or ends just before."""
    near_s = (start / SAMPLE_RATE_HZ - 0.25, end / SAMPLE_RATE_HZ)
    short = end - start < TAIL_S * SAMPLE_RATE_HZ
    return short and any(near_s[0] < word.end_s and word.start_s < near_s[1] for word in heard.words)


def _between(heard: Heard, levels: np.ndarray) -> Iterator[tuple[int, int, bool]]:
    """What is loud outside the spans: a breath, a laugh, a door."""
    speech = np.zeros(len(levels), bool)
    for start, end in heard.spans:
        speech[start // STEP : -(-end // STEP)] = True
    usual_db = float(np.median(levels[speech])) if speech.any() else 0.0
    loud = ~speech & (levels > max(heard.noise_db + LOUD_DB, usual_db - BELOW_SPEECH_DB))
    for first, last in runs(loud):
        if (last - first) * STEP >= SOUND_S * SAMPLE_RATE_HZ:
            yield first * STEP, last * STEP, False


def runs(true: np.ndarray) -> Iterable[tuple[int, int]]:
    """Where a row of booleans is true: (first, end) of each run."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], true, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
