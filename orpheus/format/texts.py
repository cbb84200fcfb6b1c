"""Texts as the model shall see them: one normaliser for training and speaking, and the lines of a file of texts.

    bytes -> lines (UTF-8, line ends only) -> normalise: what is invisible or written in several ways becomes one way

What it does not touch: letters, tags, the joiners between Indic and Arabic letters, and the quotation marks and
dashes of Chinese and Japanese texts, which are those scripts' own. A text that is clean already stays as it is.
"""

from __future__ import annotations

import html
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable

from orpheus.errors import UserError

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")  # a terminal's colours
_JOINERS = re.compile(
    # ZWNJ and ZWJ choose letters' forms after a letter of these scripts (Arabic, Indic, South East Asian, Mongolian),
    # and ZWJ ties emoji together. Anywhere else they are invisible and mean nothing.
    r"(?<![\u0600-\u109f\u1700-\u18af\u1a20-\u1c4f\ua800-\ua8df\ua980-\uaadf\uabc0-\uabff\ufb50-\ufdff\ufe70-\ufefc])"
    r"[\u200c\u200d](?![\u2600-\u27bf\U0001f000-\U0001faff])"
)
_KEPT = {*map(chr, range(0x600, 0x606)), "\u06dd", "\u070f", "\u08e2", "\u180e", "\u200c", "\u200d"}
# Seen nowhere, though Unicode files them under letters, marks or symbols: fillers of Hangul, variation selectors, ...
_UNSEEN = re.compile(r"[\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0\ufe00-\ufe0f\ufffc\U000e0000-\U000e0fff]")
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_BREAK = re.compile(r"<\s*(?:br|/?p)\s*/?\s*>", re.IGNORECASE)
_SIGNS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")  # Chinese and Japanese: “ ” and —— are their own
_NUMBERS_DASH = re.compile(r"(?<=\w)\u2013(?=\w)")  # 1914–1918, Bose–Einstein
_QUOTES = str.maketrans("“”„‟‘’‚‛＂＇", "\"\"\"\"''''\"'")
_DASHES = str.maketrans("‐‑‒−﹣－–―", "------——")


def normalise(text: str) -> str:
    """The text in the one form that is trained on and spoken. Line ends stay; idempotent.

    Composed (Unicode NFC), without invisible and control characters, HTML entities and line breaks undone, typographic
    quotes as ' and ", hyphens of all kinds as -, the other dashes as —.
    """
    return _normalised(text)[0]


def changes(text: str) -> tuple[str, ...]:
    """What `normalise` changes in the text, as a few words each; empty for a clean one."""
    return _normalised(text)[1]


def census(all_changes: Iterable[Iterable[str]]) -> str:
    """One line on what was changed in many texts ('3 of 40 (2 HTML entities, 1 quotes)'); '' if nothing was."""
    rows = [tuple(of_one) for of_one in all_changes]
    counts = Counter(change for row in rows for change in row)
    if not counts:
        return ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    return f"{sum(bool(row) for row in rows)} of {len(rows)} ({kinds})"


def _normalised(text: str) -> tuple[str, tuple[str, ...]]:
    if text.isascii() and text.isprintable() and not _ENTITY.search(text) and not _BREAK.search(text):
        return text, ()  # most texts
    found: dict[str, None] = {}
    before = None
    while before != text:  # an entity may hide an invisible character, and the other way round
        before = text
        for kind, step in _STEPS:
            changed = step(text)
            if changed != text:
                found[kind] = None
            text = changed
    return text, tuple(found)


def _line_ends(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2029", "\n\n")
    return re.sub("[\u2028\x0b\x0c\x85]", "\n", text)


def _without_unseen(text: str) -> str:
    text = _JOINERS.sub("", _UNSEEN.sub("", text))
    return "".join(c for c in text if c in _KEPT or unicodedata.category(c) != "Cf")


def _without_control(text: str) -> str:
    text = _ESCAPES.sub("", text)
    text = re.sub("[\x1c-\x1f]", " ", text)  # separators, which Python too counts as spaces
    return "".join(c for c in text if c in "\n\t" or (unicodedata.category(c) != "Cc" and not _is_no_character(c)))


def _is_no_character(c: str) -> bool:
    return ord(c) & 0xFFFE == 0xFFFE or "\ufdd0" <= c <= "\ufdef"


def _quotes(text: str) -> str:
    return text if _SIGNS.search(text) else text.translate(_QUOTES)


def _dashes(text: str) -> str:
    return text if _SIGNS.search(text) else _NUMBERS_DASH.sub("-", text).translate(_DASHES)


_STEPS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("line ends", _line_ends),
    ("control characters", _without_control),
    ("invisible characters", _without_unseen),
    ("HTML entities", lambda text: _ENTITY.sub(lambda match: html.unescape(match.group()), text)),
    ("HTML line breaks", lambda text: _BREAK.sub("\n", text)),
    ("letters composed (NFC)", lambda text: unicodedata.normalize("NFC", text)),
    ("quotes", _quotes),
    ("dashes", _dashes),
)


def lines_of(data: bytes, source: object) -> list[str]:
    """The lines of a UTF-8 text, without its byte order mark. Only \\n, \\r\\n and \\r end a line.

    `str.splitlines` would also split at U+2028, form feeds and the like, which a text may hold. UserError: not UTF-8.
    """
    for mark, name in ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")):
        if data.startswith(mark):
            raise UserError(f"can't read the texts from {source}: it is {name}, expected UTF-8: save it as that")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        bad = f"byte 0x{data[error.start]:02x} in line {line}"
        raise UserError(f"can't read the texts from {source}: {bad} is not UTF-8: save it as UTF-8") from error
    lines = re.split(r"\r\n|\n|\r", text)
    return lines[:-1] if lines[-1] == "" else lines


def check_decoded(text: str, what: str = "the text") -> None:
    """UserError for half a character (a lone surrogate), as arguments hold that are no UTF-8; quotes where."""
    at = next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), None)
    if at is not None:
        raise UserError(
            f"{what} {around(text, at)} holds half a character (U+{ord(text[at]):04X}): it is not in "
            f"{sys.getfilesystemencoding()}, write it in UTF-8"
        )


def around(text: str, at: int, room: int = 25) -> str:
    """The place `at` in a text, quoted for a message: '...words before and after...'; no control characters."""
    start, end = max(0, at - room), at + room
    quoted = f"{'...' * (start > 0)}{text[start:end]}{'...' * (end < len(text))}"
    return repr(quoted.encode("utf-8", "replace").decode())
