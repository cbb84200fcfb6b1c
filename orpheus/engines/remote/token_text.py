"""Token ids from text: `<custom_token_k>` names that a server writes, cut into pieces anywhere."""

from __future__ import annotations

import re

from orpheus.format.tokens import CUSTOM_TOKEN, TokenLayout

UNKNOWN = -1
"""Stands for text that names no token. It is legal nowhere, so the row ends with it."""

_START, _END = CUSTOM_TOKEN.split("{}")
_NUMBER = "(0|[1-9][0-9]{0,5})"
_TOKEN = re.compile(f"{re.escape(_START)}{_NUMBER}{re.escape(_END)}")
_BEGUN = re.compile(f"{re.escape(_START)}{_NUMBER}?")


class TokenText:
    """Collects text piece by piece and hands out ids; the same ids however the text is cut.

    White space between tokens is passed over: servers may write it there. Each stretch of any other text gives one
    `UNKNOWN`, and `foreign` keeps the beginning of the first one for the message.
    """

    def __init__(self, layout: TokenLayout) -> None:
        self.layout = layout
        self.foreign = ""
        self._held = ""  # may still become a token
        self._in_foreign = False

    def push(self, text: str) -> list[int]:
        """The ids that are complete with this piece."""
        self._held += text
        ids: list[int] = []
        while self._held:
            match = _TOKEN.match(self._held)
            if match:
                ids.append(self.layout.custom_start + int(match[1]))
                self._held = self._held[match.end() :]
                self._in_foreign = False
            elif self._may_grow():
                break
            else:
                # What is not a token ends where the next one may begin.
                end = self._held.find(_START[0], 1)
                self._pass_over(self._held if end < 0 else self._held[:end], ids)
                self._held = "" if end < 0 else self._held[end:]
        return ids

    def finish(self) -> list[int]:
        """The ids of what is still held when the text ends: `UNKNOWN` for half a token."""
        ids: list[int] = []
        self._pass_over(self._held, ids)
        self._held = ""
        return ids

    def _may_grow(self) -> bool:
        return _START.startswith(self._held) or bool(_BEGUN.fullmatch(self._held))

    def _pass_over(self, text: str, ids: list[int]) -> None:
        if not text.strip():
            return
        if not self._in_foreign:
            ids.append(UNKNOWN)
            self._in_foreign = True
        if len(self.foreign) < 40:
            self.foreign += text
