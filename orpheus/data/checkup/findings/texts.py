"""Findings in the texts: what is not said, what takes too long or too short, tags, and the voice's own name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

import numpy as np

from orpheus.data.checkup.finding import Check, Measured, Voice
from orpheus.format.prompt import tag_warnings
from orpheus.hearing.metrics import word_errors, words

WRONG = 0.8  # wrong words for each word
ALIKE, MOSTLY_ALIKE = 0.55, 0.75  # letters in common; the second where the pace is unusual too
DEAF = 0.6  # the median of the word error rates, from which on the recogniser understands nothing
UNUSUAL, FAR_PACE_S = 1.35, 0.75  # times the usual seconds or a part of it, and at least so much time
FEW_LETTERS = 15  # of shorter texts a recogniser gets half wrong
SLOW, QUICK = 1.9, 0.55
POINTED_TIME = re.compile(r"\b([0-9]{1,2})\.([0-5][0-9])\b")
LONG_PART, PART_LETTERS = 3, 9  # words, letters of a part that is only in the text or only in the sound


def transcript(clip: Measured, voice: Voice) -> str | None:
    """What the recogniser heard is another text."""
    if clip.heard is None or deaf(voice):
        return None
    text = words(clip.text, voice.language)
    if not text:
        return None
    rate, heard = min((errors(text, reading) / len(text), reading) for reading in readings(clip.heard, voice.language))
    one, other = " ".join(text), " ".join(heard)
    alike = likeness(one, other)
    ratio = voice.paces.get(id(clip), 1.0)
    odd = max(ratio, 1 / ratio) > UNUSUAL and len(one) > FEW_LETTERS
    said = f"heard “{clip.heard[:120] or 'nothing'}” ({rate:.0%} of the words wrong)"
    if (rate >= WRONG and alike < ALIKE) or (odd and alike < MOSTLY_ALIKE and rate > 0.3):
        return said
    if part := one_sided(text, heard, beside_tags(clip.text, voice.language)):
        return f"{part}; {said}"
    return None


def readings(heard: str, language: str) -> list[list[str]]:
    """The words of what was heard, "9.30" as a number and as a time; a word again and again ("ha ha ha ha", where
    Whisper hears a laugh and can't stop) counts twice at most."""
    said = [words(text, language) for text in (heard, POINTED_TIME.sub(r"\1:\2", heard))]
    return [[word for i, word in enumerate(row) if row[max(0, i - 2) : i] != [word, word]] for row in said]


def errors(text: list[str], heard: list[str]) -> int:
    """Wrong words of what was heard."""
    return word_errors(" ".join(text), " ".join(heard))


def beside_tags(text: str, language: str) -> set[int]:
    """How many words stand before each tag: next to a laugh a recogniser leaves words out, or adds some."""
    return {len(words(text[: found.start()], language)) for found in re.finditer(r"<[^<>]+>", text)}


def deaf(voice: Voice) -> bool:
    """Whether the recogniser understands nothing of this voice: another language, or no speech."""
    rates = [1 - likeness(" ".join(words(c.text, voice.language)), " ".join(words(c.heard, voice.language)))
             for c in voice.clips[:: max(1, len(voice.clips) // 60)] if c.heard is not None]  # fmt: skip
    return bool(rates) and float(np.median(rates)) > DEAF / 2


def likeness(one: str, other: str) -> float:
    """The share of letters in common, in order: 1 for the same text."""
    return difflib.SequenceMatcher(None, one.replace(" ", ""), other.replace(" ", ""), autojunk=False).ratio()


def one_sided(text: list[str], heard: list[str], uncertain: Collection[int] = ()) -> str | None:
    """Several words in a row that only the text has, or only the sound; none that reach a place of the `uncertain`."""
    for op, a, b, c, d in difflib.SequenceMatcher(None, text, heard, autojunk=False).get_opcodes():
        only_text, only_heard = " ".join(text[a:b]), " ".join(heard[c:d])
        if op == "equal" or abs(len(only_text) - len(only_heard)) < PART_LETTERS:
            continue
        if any(a <= place <= b for place in uncertain):
            continue
        if b - a >= LONG_PART and b - a >= 3 * (d - c):
            return f"“{only_text}” is not in the sound"
        if d - c >= LONG_PART and d - c >= 3 * (b - a):
            return f"“{only_heard}” is not in the text"
    return None


def tempo(clip: Measured, voice: Voice) -> str | None:
    """Seconds that the text can't take."""
    ratio = voice.paces.get(id(clip))
    if ratio is None:
        return None
    low, high = voice.pace_limits
    expected_s = clip.sound.spoken_s / ratio
    far = ratio > min(high, SLOW) or ratio < max(low, QUICK)
    if far and max(ratio, 1 / ratio) > UNUSUAL and abs(clip.sound.spoken_s - expected_s) > FAR_PACE_S:
        return f"{clip.sound.spoken_s:.1f} s of speech, such a text usually takes {expected_s:.1f}"
    return None


def tags(clip: Measured, voice: Voice) -> str | None:
    """Tags that look like slips, and what stands in other brackets."""
    return "; ".join(line.replace(" (1 times)", "") for line in tag_warnings([clip.text])) or None


def own_name(clip: Measured, voice: Voice) -> str | None:
    """A text that begins with its own voice, which is put before it anyway."""
    if clip.voice and re.match(rf"{re.escape(clip.voice)}\s*[:：]", clip.text, re.IGNORECASE):
        return f"begins with “{clip.voice}:”, which is put before each text anyway"
    return None


CHECKS = (
    Check("transcript", "The transcript is not what is said", "Listen to it, and write what is said; or leave it out.",
          transcript, explains=frozenset({"pace"})),
    Check("pace", "Too long or too short for its text", "Listen to it: words are missing, or too many.", tempo),
    Check("tags", "Tags that look like slips", "Write the tag that is meant.", tags, lambda clip: 0.0),
    Check("own name", "The text begins with the voice's name", "Leave the name out of the text.", own_name,
          lambda clip: 0.0),
)  # fmt: skip
