"""Voice by example: recordings and their texts, shown to the model before the text that it is to speak.

A pretrained base goes on in the voice that it was shown (Canopy: the more pairs, the more reliably). One that was never
taught to listen to examples does not: docs/measured.md has what the embedded base does with them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orpheus.audio import recordings
from orpheus.codec.snac import SnacCodec
from orpheus.config import CorpusOptions, SamplingOptions
from orpheus.engines.base import Engine
from orpheus.errors import UserError
from orpheus.format.prompt import Renderer, check_text
from orpheus.format.tokens import Codes

log = logging.getLogger(__name__)

Reference = tuple[str | Path | np.ndarray, str]
"""A recording (a file, or float32 [n] at 24 kHz) and what is said in it."""


class Shown(NamedTuple):
    """A reference, encoded."""

    name: str
    text: str
    codes: Codes


def read_references(references: Sequence[Reference], codec: SnacCodec) -> list[Shown]:
    """The references as codes. UserError: one is no pair, has no text, can't be read, or holds no sound."""
    found: list[tuple[str, str, np.ndarray]] = []
    for number, pair in enumerate(references, start=1):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise UserError(f"reference {number} is {pair!r:.60}, expected a pair (recording, text)")
        recording, text = pair
        name = f"reference {number}" if isinstance(recording, np.ndarray) else str(recording)
        found.append((name, _text(name, text), _samples(name, recording)))
    codes = codec.encode([samples for *_, samples in found]) if found else []
    return [Shown(name, text, code) for (name, text, _), code in zip(found, codes, strict=True)]


def _text(name: str, text: Any) -> str:
    try:
        return check_text(text)
    except UserError as error:
        raise UserError(f"what is said in the reference {name}? {error}") from error


def _samples(name: str, recording: Any) -> np.ndarray:
    if isinstance(recording, np.ndarray) and recording.ndim != 1:
        raise UserError(f"{name} has the shape {recording.shape}, expected mono: [n] at 24 kHz")
    given = isinstance(recording, np.ndarray)
    samples = np.asarray(recording, np.float32) if given else recordings.read(recording)
    recordings.check(samples, min_s=CorpusOptions.min_seconds, name=name)
    return samples


def after(renderer: Renderer, engine: Engine, shown: Sequence[Shown], prompt: list[int], voice: str | None,
          sampling: SamplingOptions) -> tuple[list[int], int]:  # fmt: skip
    """The prompt with as many of the last references before it as the context holds; and how many were left out.

    Never the prompt is cut. UserError: a reference is too long even alone.
    """
    if not shown:
        return prompt, 0
    room = engine.context_length - sampling.max_new_tokens
    lengths = [len(renderer.example(one.text, one.codes, voice).input_ids) for one in shown]
    for one, length in zip(shown, lengths, strict=True):
        if length + len(prompt) > room:
            raise UserError(f"the reference {one.name} takes {length} tokens, and beside the text and the speech that "
                            f"may follow the model's context has room for {max(room - len(prompt), 0)}: take a shorter "
                            "reference, or lower --max-new-tokens")  # fmt: skip
    first = 0
    while first < len(shown) and sum(lengths[first:]) + len(prompt) > room:
        first += 1
    return renderer.by_example([(one.text, one.codes) for one in shown[first:]], prompt, voice), first


def warn_of_left_out(left_out: int, shown: Sequence[Shown]) -> None:
    """A log line, if some references did not fit."""
    if left_out:
        log.warning("the model's context has no room for all references: the first %d of %d are not shown to it",
                    left_out, len(shown))  # fmt: skip


def described(shown: Sequence[Shown]) -> dict[str, Any]:
    """What a provenance says of them; nothing where there are none."""
    return {"references": [{"name": one.name, "text": one.text} for one in shown]} if shown else {}
