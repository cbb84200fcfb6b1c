"""What an adapter was trained on, in short: enough to say later whether a recording or a text was among it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from orpheus.data.clips import Clip
from orpheus.format.prompt import strip_tags

DIGITS = 8  # of each hash: two of a thousand clips are taken for one another once in ten thousand corpora


def seen(clips: Iterable[Clip]) -> str:
    """The clips as `Provenance.seen` keeps them: a word each, half of it for the recording, half for its text."""
    return " ".join(sorted({_recording(clip.key) + _text(clip.text) for clip in clips}))


def overlap(seen: str, clips: Sequence[tuple[str, str]]) -> tuple[int, int]:
    """How many (key, text) of clips were seen as recordings; and how many others have a text that was seen.

    Case, tags and punctuation make no other text; a recording that was changed in any way is another one.
    """
    words = seen.split()
    recordings, texts = {word[:DIGITS] for word in words}, {word[DIGITS:] for word in words}
    known = [_recording(key) in recordings for key, _ in clips]
    return sum(known), sum(_text(text) in texts and not k for k, (_, text) in zip(known, clips, strict=True))


def _recording(key: str) -> str:
    return key[:DIGITS]


def _text(text: str) -> str:
    said = "".join(c for c in strip_tags(text).casefold() if c.isalnum())
    return hashlib.sha256(said.encode()).hexdigest()[:DIGITS]
