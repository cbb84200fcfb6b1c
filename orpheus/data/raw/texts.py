"""The words of a recording, as a person wrote them, laid over the words that were heard.

    transcript or subtitles ─► one text ─► its words beside Whisper's, aligned by edit distance ─► a place for each cut

Where nobody wrote them down, what was heard is the text. Sentences end where `format.pieces.sentences` says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from orpheus.errors import MissingPackage
from orpheus.format.pieces import sentences
from orpheus.format.prompt import KNOWN_TAGS, suggest_tag
from orpheus.format.texts import normalise
from orpheus.hearing.metrics import words
from orpheus.hearing.numerals import written_out

ALIKE = 0.6  # least likeness of the letters of a piece's text and of what was heard in it; other texts have 0.2 to 0.4
FITS = 0.3  # least share of a recording's heard words that its transcript has, in their order

_CUE_TIME = re.compile(r"^\s*(?:\d+:)?\d{1,2}:\d{2}[.,]\d{1,3}\s*-->.*$")
_MARKUP = re.compile(
    r"</?(?:i|b|u|s|c|v|font|ruby|rt|lang|span)(?:[ .][^<>]*)?>|<[\d:.,]+>|\{\\[^{}]*\}", re.IGNORECASE
)
_KEPT = re.compile(r"\[([^\[\]]*)\]")
_DIRECTION = re.compile(r"\[([^\[\]]*)\]|\*([^*\n]+)\*|[♪♫]+")
_ROUND = re.compile(r"\(([^()]{1,40})\)")
SIGN = r"[\u3040-\u30ff\u3400-\u9fff][^\w\s<]*"  # of a script without spaces between words, and what follows it
_TOKEN = re.compile(rf"<[^<>]*>|\[[^\[\]]*\]|{SIGN}|[^\s<\[]+?(?=[\s<\[]|{SIGN}|$)")
_UNIT = re.compile(rf"{SIGN}|(?:(?!{SIGN}).)+")
_DIGIT = re.compile(r"\d")
ABBREVIATIONS: dict[str, dict[str, str]] = {
    "en": {"Mr.": "Mister", "Mrs.": "Missus", "Ms.": "Miz", "Dr.": "Doctor", "Prof.": "Professor", "St.": "Saint",
           "vs.": "versus", "etc.": "et cetera", "e.g.": "for example", "i.e.": "that is", "approx.": "approximately",
           "Jr.": "Junior", "Sr.": "Senior", "No.": "number"},
    "de": {"Dr.": "Doktor", "Prof.": "Professor", "Hr.": "Herr", "Fr.": "Frau", "z. B.": "zum Beispiel",
           "z.B.": "zum Beispiel", "d. h.": "das heißt", "d.h.": "das heißt", "usw.": "und so weiter",
           "bzw.": "beziehungsweise", "ca.": "circa", "Nr.": "Nummer", "St.": "Sankt"},
    "fr": {"M.": "Monsieur", "Mme": "Madame", "Mlle": "Mademoiselle", "Dr": "Docteur", "etc.": "et cetera",
           "p. ex.": "par exemple", "c.-à-d.": "c'est-à-dire", "St": "Saint", "n°": "numéro"},
    "es": {"Sr.": "señor", "Sra.": "señora", "Srta.": "señorita", "Dr.": "doctor", "Dra.": "doctora",
           "Ud.": "usted", "Uds.": "ustedes", "etc.": "etcétera", "p. ej.": "por ejemplo", "n.º": "número"},
    "it": {"Sig.": "signor", "Sig.ra": "signora", "Dott.": "dottor", "Dott.ssa": "dottoressa", "Prof.": "professor",
           "ecc.": "eccetera", "p. es.": "per esempio", "n.": "numero"},
}  # fmt: skip
_BEFORE_DIGIT = frozenset({"No.", "Nr.", "n°", "n.º", "n."})  # elsewhere they are words of their own


@dataclass(frozen=True)
class Aligned:
    """A text over n heard words: word i has the characters `begin[i]` to `end[i]` of it, neighbours may share theirs.

    `ends[i]`: a sentence ends after word i. `sure[i]`: it is certain which words come before and after that place.
    `share`: of the heard words, how many the text has too.
    """

    text: str
    begin: list[int]
    end: list[int]
    ends: list[bool]
    sure: list[bool]
    share: float

    def between(self, first: int, last: int) -> str:
        """The text of the words from `first` to `last` (exclusive)."""
        return " ".join(self.text[self.begin[first] : self.end[last - 1]].split())

    def stops_too(self, heard: Aligned) -> Aligned:
        """With the sentence ends that were `heard` where this text has no mark at all and goes on with a capital."""
        ends = [
            ours or (theirs and sure and self.text[end - 1 : end].isalnum() and self.text[begin : begin + 1].isupper())
            for ours, theirs, sure, end, begin in zip(
                self.ends, heard.ends, self.sure, self.end, [*self.begin[1:], 0], strict=True)
        ]  # fmt: skip
        return replace(self, ends=ends)


def script_of(written: str, kind: str) -> str:
    """A transcript's or subtitle file's text, a paragraph a line; `kind` is its file's suffix.

    Tags in angle brackets stay: they are what a person wants there. Of other stage directions those that mean a sound
    with a tag stay as [laughs], for `directions`; [music] and the like are left out.
    """
    lines = [_MARKUP.sub("", line) for line in normalise(written).split("\n")]
    text = " ".join(_cues(lines)) if kind in (".srt", ".vtt") else "\n".join(lines)
    text = _ROUND.sub(lambda found: _sound_alone(found) or found[0], _DIRECTION.sub(_sound_alone, text))
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    return "\n".join(filter(None, paragraphs))


def directions(text: str) -> tuple[str, list[str]]:
    """The text without its [directions], and what they were: '[laughs] Yes.' -> ('Yes.', ['laughs'])."""
    return " ".join(_KEPT.sub(" ", text).split()), _KEPT.findall(text)


def _sound_alone(found: re.Match[str]) -> str:
    name = next((group for group in found.groups() if group), "").strip(" .!").lower()
    return f" [{name}] " if is_sound(name) else "" if found.re is _ROUND else " "


def is_sound(name: str) -> bool:
    """Whether a word means a sound that there is a tag for: 'laughing'."""
    name = name.strip(" .!").lower()
    return name in KNOWN_TAGS or (len(name) > 3 and suggest_tag(name) is not None)


def _cues(lines: Sequence[str]) -> list[str]:
    """The lines that are spoken: no numbers, times, headers or notes; what a cue repeats of the one before, once."""
    blocks = re.split(r"\n\s*\n", "\n".join(lines))
    spoken: list[str] = []
    for block in blocks:
        rows = block.strip().split("\n")
        at = next((i for i, row in enumerate(rows) if _CUE_TIME.match(row)), None)
        cue = [re.sub(r"^\s*[-–—]\s+", "", row).strip() for row in rows[at + 1 :]] if at is not None else []
        spoken += [row for row in cue if row and row not in spoken[-2:]]
    return spoken


def as_heard(heard: Sequence[str]) -> Aligned:
    """The heard words, each with the space before it, as their own text."""
    text = "".join(heard)
    after = list(accumulate(map(len, heard)))
    before = [end - len(word.lstrip()) for end, word in zip(after, heard, strict=True)]
    single = " ".join(text.split())  # as `sentences` wants it
    letters = {len(single[:end].replace(" ", "")) for _, end in sentences(single)} if single else set()
    ends = [len("".join(text[:end].split())) in letters for end in after]
    return Aligned(text, before, after, ends, [True] * len(heard), 1.0)


def align(heard: Sequence[str], text: str, language: str) -> Aligned:
    """Lay a text, a paragraph a line, over the heard words. MissingPackage without rapidfuzz."""
    tokens = list(_TOKEN.finditer(text))
    ours = [(word, number) for number, one in enumerate(heard) for word in _units(one, language)]
    theirs = [(word, number) for number, token in enumerate(tokens)
              if token[0][0] != "[" for word in _units(token[0], language)]  # fmt: skip
    partner = _partners([word for word, _ in ours], [word for word, _ in theirs])
    first: dict[int, int] = {}  # heard word -> its first token
    last: dict[int, int] = {}
    equal = set()
    for (word, number), place in zip(ours, partner, strict=True):
        if place is not None:
            first.setdefault(number, theirs[place][1])
            last[number] = theirs[place][1]
            equal |= {number} if theirs[place][0] == word else set()
    stops = frozenset(line.start() + end for line in re.finditer(".+", text) for _, end in sentences(line[0]))
    begin, end, sure, ends = [0], [0], [True], [False]
    for number in range(-1, len(heard)):
        before = next((last[n] for n in range(number, -1, -1) if n in last), -1)
        after = next((first[n] for n in range(number + 1, len(heard)) if n in first), len(tokens))
        left, right, certain = _boundary(tokens[max(before, 0) : after + 1], before >= 0, after < len(tokens), stops)
        end.append(left)
        begin.append(right)
        inside = before == after  # two heard words for one of the text
        sure.append(certain and not inside)
        ends.append(left in stops and not inside and (number + 1 in first or number + 1 == len(heard)))
    said = {number for _, number in ours}
    return Aligned(text, begin[1:-1], end[2:], ends[2:], sure[2:], len(equal) / len(said) if said else 0.0)


def _units(text: str, language: str) -> list[str]:
    """The words that are compared, in scripts without spaces the signs."""
    return [unit for word in words(text, language) for unit in _UNIT.findall(word)]


def _boundary(near: Sequence[re.Match[str]], before: bool, after: bool, stops: frozenset[int]) -> tuple[int, int, bool]:
    """Where the text before a place between two words ends, where that after it begins, and whether that is certain.

    `near` are the tokens from the last one heard before it (if there is one: `before`) to the first one after it. Of
    those that nobody heard, each belongs to the sentence that it is in; in mid-sentence it could be on either side.
    """
    if not near:
        return 0, 0, True
    unheard = near[1 if before else 0 : -1 if after else None]
    left = near[0].end() if before else near[0].start()
    right = near[-1].start() if after else near[-1].end()
    if not unheard:
        return left, right, True
    sentence = [place for place in (left, *(token.end() for token in unheard)) if place in stops or place == 0]
    if not sentence:
        return (left, right, False) if before and after else (left if before else right, right, True)
    begins = next((token.start() for token in near if token.start() >= sentence[-1]), right)
    return sentence[0], begins, not any(token[0].startswith("<") for token in unheard)


def _partners(ours: Sequence[str], theirs: Sequence[str]) -> list[int | None]:
    """For each of our words the place of the one of theirs that stands for it, by the smallest edit distance."""
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise MissingPackage("rapidfuzz", "aligning a transcript") from error
    found: list[int | None] = [None] * len(ours)
    for op in Levenshtein.opcodes(ours, theirs):
        if op.tag in ("equal", "replace"):
            found[op.src_start : op.src_end] = range(op.dest_start, op.dest_end)
    return found


def likeness(text: str, heard: str, language: str) -> float:
    """How much the letters of a text are those of what was heard, 0 to 1: 'invalid' and 'in valid' are alike."""
    from rapidfuzz.distance import Levenshtein

    a, b = ("".join(words(one, language)) for one in (text, heard))
    return float(Levenshtein.normalized_similarity(a, b))


def spoken(text: str, language: str) -> str:
    """Numbers and, in the languages of ABBREVIATIONS, abbreviations written out; tags are left alone."""
    for short, long in sorted(ABBREVIATIONS.get(language, {}).items(), key=lambda pair: -len(pair[0])):
        then = r"(?=\s*\d)" if short in _BEFORE_DIGIT else r"(?!\w)"
        pattern = rf"(?<![\w.]){re.escape(short)}{then}"
        if short.endswith("."):  # at the end of a text it is a full stop too
            text = re.sub(rf"{pattern}\s*$", f"{long}.", text)
        text = re.sub(pattern, long, text)
    parts = re.split(r"(<[^<>]*>)", text)
    said = "".join(part if part.startswith("<") else written_out(part, language) for part in parts)
    return re.sub(r"\s+([.,;:!?…)])", r"\1", " ".join(said.split()))


def has_digits(text: str) -> bool:
    """Whether there is a number in figures, outside the tags."""
    return _DIGIT.search(re.sub(r"<[^<>]*>", "", text)) is not None
