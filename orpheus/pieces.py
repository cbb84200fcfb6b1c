"""A text of any length in pieces that can be spoken in one go: whole sentences where possible, tags never cut."""

from __future__ import annotations

import re


def split(text: str, limit: int) -> list[str]:
    """The text in pieces, whole sentences each; longer than `limit` characters only where a sentence is."""
    pieces: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+(?=\w|<)", " ".join(text.split())):
        if pieces and len(pieces[-1]) + 1 + len(sentence) <= limit:
            pieces[-1] += " " + sentence
        else:
            pieces.append(sentence)
    return pieces
