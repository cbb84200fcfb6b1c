"""What the columns of a table without a header hold: the recording, the transcript, a speaker, or none of these.

A column is judged by all of its cells, never by its place. Where two could be the transcript and are not two spellings
of the same, or two could be the speaker, nothing is chosen: the caller asks for a header.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from orpheus.data.columns import PEOPLE

Kind = Literal["empty", "numbers", "phonemes", "one value", "labels", "speaker", "names", "text"]

SAMPLED = 200  # rows that a comparison looks at
SAME_LETTERS = 0.6  # of both texts (difflib's ratio); translations into related languages have 0.4
_NUMBER = re.compile(r"[+-]?[\d.,:]+\s?(s|ms|sec|%)?")
_RARE = "ɹɪʊʌɐɑɜɚɝɒɫɾʁʎɕʑʂʐʃ"  # letters of the IPA in hardly any orthography
_MARKED = re.compile(f"[ˈˌː]|[{_RARE}].*[{_RARE}]")
_NUMBERED = re.compile(r"[A-Za-z]+[0-5]")  # AH0 of ARPAbet, ni3 of pinyin
_LABEL = re.compile("(ar|cs|da|de|el|en|es|fi|fr|he|hi|hu|it|ja|ko|nl|no|pl|pt|ro|ru|sv|th|tr|uk|vi|zh)([-_][a-z]{2})?|"
                    "m|f|male|female|neutral|normal|happy|sad|angry|surprised?|fear(ful)?|disgust(ed)?|calm|whisper|"
                    "sleep(y|iness)|amused?|train|test|dev|val(idation)?", re.IGNORECASE)  # fmt: skip


class Roles(NamedTuple):
    """Columns by their place: the recording, the spellings of the transcript (best first), the speaker."""

    audio: int
    texts: list[int]
    voice: int | None
    said: str


def kind(cells: Sequence[str]) -> Kind:
    """What a column holds, by its cells."""
    filled = [cell for cell in cells if cell]
    if not filled:
        return "empty"
    if all(map(_NUMBER.fullmatch, filled)):
        return "numbers"
    if 2 * sum(map(_is_phonetic, filled)) > len(filled):
        return "phonemes"
    different = len(set(filled))
    if different == 1 and len(filled) > 2:
        return "one value"
    if not all(map(_is_name, filled)):
        return "text"
    if different not in PEOPLE or 2 * different > len(filled) + 1:
        return "names"
    return "labels" if all(map(_LABEL.fullmatch, filled)) else "speaker"


def roles(columns: Sequence[Sequence[str]], audio: int) -> Roles | str:
    """What each column is for, given the one with the recordings; or why it can't be told."""
    kinds = {place: kind(cells) for place, cells in enumerate(columns) if place != audio}
    texts = _of(kinds, "text") or _of(kinds, "names")
    if not texts:
        return "no column looks like a transcript"
    if len(texts) > 2 or (len(texts) == 2 and not _spellings(*(columns[place] for place in texts))):
        return f"the columns {_listed(texts)} all look like transcripts"
    voices = _of(kinds, "speaker")
    if len(voices) > 1:
        return f"the columns {_listed(voices)} all look like speakers"
    voice = voices[0] if voices else None
    return Roles(audio, texts[::-1], voice, _said(columns, kinds, audio, texts, voice))


def _said(columns: Sequence[Sequence[str]], kinds: dict[int, Kind], audio: int, texts: list[int],
          voice: int | None) -> str:  # fmt: skip
    parts = {audio: "the recording", texts[-1]: "the text"}
    if len(texts) == 2:
        parts |= {texts[0]: "the text where that is empty"}
    if voice is not None:
        parts |= {voice: f"the speaker ({len(set(filter(None, columns[voice])))} people)"}
    left = {place: f"left out ({what})" for place, what in kinds.items() if place not in parts}
    return ", ".join(f"column {place + 1} {what}" for place, what in sorted((parts | left).items()))


def _of(kinds: dict[int, Kind], wanted: Kind) -> list[int]:
    return [place for place, what in kinds.items() if what == wanted]


def _listed(places: Sequence[int]) -> str:
    return " and ".join(str(place + 1) for place in places)


def _is_name(cell: str) -> bool:
    return len(cell) <= 40 and len(cell.split()) <= 3 and not re.search(r"[.!?,;:…。？！，،।]", cell)


def _is_phonetic(cell: str) -> bool:
    words = cell.split()
    return bool(_MARKED.search(cell)) or 3 * sum(map(bool, map(_NUMBERED.fullmatch, words))) > len(words)


def _spellings(one: Sequence[str], other: Sequence[str]) -> bool:
    pairs = [(a.casefold(), b.casefold()) for a, b in zip(one, other, strict=True) if a and b]
    sample = pairs[:: max(1, len(pairs) // SAMPLED)]
    return 2 * sum(_alike(*pair) for pair in sample) >= len(sample)


def _alike(one: str, other: str) -> bool:
    """Two texts share most letters, or half of the words of the shorter: in the other numbers are spelt out."""
    words, more = set(re.findall(r"\w+", one)), set(re.findall(r"\w+", other))
    if 2 * len(words & more) >= min(len(words), len(more)):
        return True
    return difflib.SequenceMatcher(None, one, other).ratio() > SAME_LETTERS
