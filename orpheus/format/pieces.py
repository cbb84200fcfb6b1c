"""A text of any length in pieces that can be spoken in one go: whole sentences where possible, tags never cut.

    paragraphs (blank lines) > sentences > clauses > words        cut at the first of these that makes it short enough

Sentences are found by `sentencex` (Wikimedia): abbreviations, initials, numbers, quotations, some 300 languages. It
wants to know the language, and a text does not say it: the script tells, or of the languages in Latin letters that
Orpheus was trained on the one whose small words are the most.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import pairwise

from orpheus.errors import MissingPackage
from orpheus.format.prompt import find_tags, strip_tags

DENSE = 3
"""A Chinese, Japanese or Korean sign is a syllable or more, a digit a word: spoken, each is as long as 3 letters."""

SMALL_WORDS = {
    "en": "the and of to is was it that he she you i in not with for on my your are",
    "de": "der die das und ist nicht ich du er sie es ein eine den dem mit auf war wir am",
    "fr": "le la les et est il elle un une des je tu pas dans que qui pour sur vous nous du",
    "es": "el la los las y es un una que no de en se por con para su lo como yo del",
    "it": "il la lo gli le e un una che non di in si per con sono ma mi ti della",
}
_SCRIPTS = (("hi", re.compile(r"[\u0900-\u097f]")), ("ko", re.compile(r"[\uac00-\ud7af]")),
            ("ja", re.compile(r"[\u3040-\u30ff]")), ("zh", re.compile(r"[\u3400-\u9fff]")))  # fmt: skip
_PARAGRAPH = re.compile(r"\n\s*\n")
_TAG = re.compile(r"<[^<>]*>")
_WORD = re.compile(r"(?:<[^<>]*>|[^\s<])+")
_CLAUSE_END = re.compile(r"[,;:!?…)\]—–،؛।]+['\"”’»)]*\s|[，、；：。！？…—]+[”’」』）]*")
# Not the end of a sentence, though sentencex says so: initials (the French M. too), titles in Hindi.
_SHORTENED = re.compile(r"(?:^|[\s.(\"“«])(?:[^\W\d_]|Mme|Mlle|डॉ|श्री|प्रो|पं)\.\s*$")
_SIGN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")  # of a script that writes words without spaces between them

Span = tuple[int, int]


def spoken_length(text: str) -> int:
    """How long a text is to speak, in letters, its tags not counted (`DENSE` says what counts as more than one)."""
    return sum(DENSE if c.isdigit() or _is_wide(c) else 1 for c in strip_tags(text))


def length(text: str) -> int:
    """What `split` counts: `spoken_length` and the tags as they are written, an <sighs> of half a second as 7."""
    return spoken_length(text) + sum(len(tag) + 2 for tag in find_tags(text))


def _is_wide(c: str) -> bool:
    return unicodedata.east_asian_width(c) in "WF" and c.isalnum()


def split(text: str, limit: int) -> list[str]:
    """The text in pieces of whole sentences, together at most `limit` long (`length`); blank lines end a piece.

    A sentence that is longer is cut at punctuation, or else between words; a single word that is longer stays whole.
    What has no letter or digit of its own, and a tag by itself, stays with the word before it (the first: after it).
    Joined, the pieces are the text, but for spaces. Raises MissingPackage without sentencex.
    """
    paragraphs: list[str] = []
    for paragraph in (" ".join(part.split()) for part in _PARAGRAPH.split(text)):
        if paragraphs and not (_says(paragraph) and _says(paragraphs[-1])):  # a line of stars, or a tag
            paragraphs[-1] = f"{paragraphs[-1]} {paragraph}".strip()
        else:
            paragraphs.append(paragraph)
    return [piece for paragraph in paragraphs for piece in _split(paragraph, limit)]


def _split(text: str, limit: int) -> list[str]:
    if length(text) <= limit:  # most texts are short
        return [text]
    parts = (part for sentence in sentences(text) for part in _fitting(text, sentence, limit))
    return [text[a:b] for a, b in _grouped(text, parts, limit)]


def sentences(text: str) -> list[Span]:
    """Where the sentences of a paragraph with single spaces stand. One that says nothing stays with the one before."""
    try:
        from sentencex import segment
    except ImportError as error:
        raise MissingPackage("sentencex", "splitting a long text") from error
    inside = {at for tag in _TAG.finditer(text) for at in range(tag.start() + 1, tag.end())}
    ends, at = [], 0
    for sentence in segment(language_of(text), text):
        at += len(sentence)
        if at not in inside and not _SHORTENED.search(sentence):
            ends.append(at)
    return _joined(text, _cut(text, (0, len(text)), ends))


def language_of(text: str) -> str:
    """The language by its script, or by its small words; 'en' where they don't tell."""
    found = next((language for language, script in _SCRIPTS if script.search(text)), None)
    if found:
        return found
    words = re.findall(r"\w+", text.lower())
    votes = {language: sum(word in small.split() for word in words) for language, small in SMALL_WORDS.items()}
    return max(votes, key=lambda language: votes[language])


def _cut(text: str, span: Span, ends: Iterable[int]) -> list[Span]:
    """The span cut at `ends`, without the spaces around the parts."""
    places = [span[0], *(end for end in ends if span[0] < end < span[1]), span[1]]
    parts = []
    for a, b in pairwise(places):
        part = text[a:b]
        if part.strip():
            parts.append((a + len(part) - len(part.lstrip()), b - len(part) + len(part.rstrip())))
    return parts


def _says(text: str) -> bool:
    """Whether something is left to say without the tags."""
    return any(c.isalnum() for c in strip_tags(text))


def _joined(text: str, parts: Iterable[Span]) -> list[Span]:
    """The parts, those that say nothing by themselves put to the part before; the first to the next."""
    done: list[Span] = []
    for a, b in parts:
        if done and not (_says(text[a:b]) and _says(text[slice(*done[-1])])):
            done[-1] = (done[-1][0], b)
        else:
            done.append((a, b))
    return done


def _grouped(text: str, parts: Iterable[Span], limit: int) -> Iterator[Span]:
    """Neighbours together, as many as the limit allows."""
    group: Span | None = None
    for a, b in parts:
        if group and length(text[group[0] : b]) > limit:
            yield group
            group = None
        group = (group[0] if group else a, b)
    if group:
        yield group


def _fitting(text: str, sentence: Span, limit: int) -> Iterator[Span]:
    """The sentence itself, or parts of it that fit."""
    a, b = sentence
    if length(text[a:b]) <= limit:
        yield sentence
        return
    tags = [(a + tag.start(), a + tag.end()) for tag in _TAG.finditer(text[a:b])]
    ends = [a + m.end() for m in _CLAUSE_END.finditer(text[a:b])]
    ends = [end for end in ends if not any(start < end < stop for start, stop in tags)]
    for clause in _joined(text, _cut(text, sentence, ends)):
        if length(text[slice(*clause)]) <= limit:
            yield clause
        else:
            yield from _grouped(text, _words(text, clause), limit)


def _words(text: str, clause: Span) -> list[Span]:
    """The words of a clause; signs of scripts without spaces are words by themselves."""
    words: list[Span] = []
    for word in _WORD.finditer(text, *clause):
        if _SIGN.search(_TAG.sub("", word[0])):
            words += [m.span() for m in re.compile(r"<[^<>]*>|[^<]").finditer(text, *word.span())]
        else:
            words.append(word.span())
    return _joined(text, words)
