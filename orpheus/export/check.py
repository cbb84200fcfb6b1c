"""Is an exported model still the voice it was made from? Its own ids and scores are held against the source's.

Ids alone would be a poor measure: one near tie, and everything after it differs. So the export speaks, and the source
is asked for its scores along the very same ids: at each step the two can be compared, whatever went before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orpheus.config import SamplingOptions
from orpheus.engines.base import Engine
from orpheus.errors import UserError
from orpheus.format.tokens import FRAME_SLOTS, StopReason, TokenLayout

Scores = Callable[[Sequence[int]], np.ndarray]
"""Ids [n] -> float32 [n, V]: what a model expects after each of them."""

LIMITS = {"float32": 0.001, "F32": 0.001, "float16": 0.005, "F16": 0.005, "bfloat16": 0.02, "BF16": 0.02,
          "4bit": 0.2, "Q8_0": 0.05, "Q6_K": 0.08, "Q5_K_M": 0.12, "Q4_K_M": 0.2}  # fmt: skip
"""How far scores may be from the source's: root mean square of the difference over the spread (standard deviation)."""
TIES = 2.0
"""An id counts as tied with the source's best if its score is lower by at most so many limits, in units of the spread.
Among thousands of codes with nearly the best score the largest error decides: with random weights of the published
size, Q4_K_M differs by 0.084 of the spread, and the worst of 70 greedy ids stood 0.274 below the source's best."""
ROUNDING = 0.05  # added where the source itself is computed in 16 bit
GREEDY_FRAMES, SLOT_FRAMES = 10, 50
MOST_UTTERANCES = 30  # to collect the frames from: a voice may end early
TOP = 10


@dataclass(frozen=True)
class Left:
    """An id out of its slot: where the export drew it, and how it scored it there."""

    before: list[int]  # prompt and ids up to it
    token_id: int
    score: float  # below the export's best: 0 or more
    reason: str


@dataclass(frozen=True)
class Spoken:
    """What an export said: a prompt [p], the most likely ids after it [n], the scores along both [p + n - 1, V]."""

    prompt: list[int]
    ids: list[int]
    scores: np.ndarray
    frames: int  # drawn at the default sampling, every id in its slot
    utterances: int
    left: tuple[Left, ...] = ()  # those of the utterances that an id out of its slot ended


def speak(engine: Engine, scores: Scores, prompts: Sequence[list[int]]) -> Spoken:
    """Let the export speak: greedily after the first prompt, and 50 frames by drawing, after all of them in turn.

    UserError if they do not come: too many utterances end at once.
    """
    frames = utterances = 0
    left: list[Left] = []
    while frames < SLOT_FRAMES and utterances < MOST_UTTERANCES:
        drawing = SamplingOptions(max_new_tokens=FRAME_SLOTS * (SLOT_FRAMES - frames))
        prompt = prompts[utterances % len(prompts)]
        ids = draw(engine, prompt, drawing, seed=utterances)
        codes, stop = engine.layout.unflatten(ids)
        if leaves(engine.layout, stop):
            before = [*prompt, *ids[: stop.index]]
            row = scores(before)[-1]
            left.append(Left(before, ids[stop.index], float(row.max() - row[ids[stop.index]]), str(stop)))
        frames += codes.frames
        utterances += 1
    if frames < SLOT_FRAMES:
        raise UserError(
            f"the export spoke only {frames} frames in {utterances} utterances, {SLOT_FRAMES} are needed to check it: "
            "if its source speaks no more, train longer; --no-check writes it all the same"
        )
    greedy = SamplingOptions(temperature=0, repetition_penalty=1, max_new_tokens=FRAME_SLOTS * GREEDY_FRAMES)
    ids = draw(engine, prompts[0], greedy, seed=0)
    return Spoken(prompts[0], ids, scores([*prompts[0], *ids[:-1]]), frames, utterances, tuple(left))


def draw(engine: Engine, prompt: list[int], sampling: SamplingOptions, seed: int) -> list[int]:
    """The ids that an engine says after one prompt."""
    return [token_id for _, token_id in engine.stream([prompt], sampling, [seed])]


def leaves(layout: TokenLayout, stop: StopReason) -> bool:
    """Whether an utterance ended at an id that may not stand where it was drawn."""
    return stop.token_id is not None and (stop.token_id != layout.end_of_speech or stop.dropped > 0)


def more_bits(kind: str) -> str:
    """What to do where an export of this kind is too far from its source."""
    option = "--dtype float32" if kind.islower() else "--type Q8_0"
    return f"Export with more bits ({option}); --no-check writes it all the same"


def compare(spoken: Spoken, source: Scores, kind: str, exact: bool) -> dict[str, Any]:
    """Hold what was spoken against the source. kind: a key of LIMITS. exact: the source is computed in 32 bit.

    Returns the figures, for the user and for the record. UserError if the scores are further from the source's than
    this kind's limit, or if an id was chosen that the source ranks clearly lower than its best, or if the export leaves
    its slots at an id that the source scores clearly lower than it does: what the source does too is no fault.
    """
    theirs = source([*spoken.prompt, *spoken.ids[:-1]])
    spread = float(theirs.std())
    difference = np.abs(spoken.scores - theirs) / spread
    distance = float(np.sqrt(np.mean(np.square(difference))))
    best = np.argpartition(theirs, -TOP, axis=1)[:, -TOP:]
    steps = theirs[len(spoken.prompt) - 1 :]
    lower = (steps.max(axis=1) - steps[np.arange(len(steps)), spoken.ids]) / spread
    limit = LIMITS[kind] + (0 if exact else ROUNDING)
    same = int((lower == 0).sum())
    figures = {
        "kind": kind,
        "greedy_ids": len(spoken.ids),
        "greedy_ids_same": same,
        "largest_tie": round(float(lower.max()), 5),
        "scores_differ_by": round(distance, 5),
        "limit": limit,
        "top_scores_differ_by_at_most": round(float(np.take_along_axis(difference, best, axis=1).max()), 5),
        "frames_in_their_slots": spoken.frames,
        "utterances": spoken.utterances,
        "utterances_that_left_them": len(spoken.left),
    }
    if not max(distance, lower.max() / TIES) <= limit:  # NaN is not within a limit
        raise UserError(
            f"the export differs from its source: scores by {distance:.4f} of their spread (limit {limit:g}), "
            f"and {len(spoken.ids) - same} of {len(spoken.ids)} ids, the worst of them by "
            f"{lower.max():.4f} (limit {TIES * limit:g}). {more_bits(kind)}"
        )
    for left in spoken.left:
        row = source(left.before)[-1]
        if not (row.max() - row[left.token_id] - left.score) / spread <= TIES * limit:
            raise UserError(f"the export leaves its slots where its source does not: {left.reason}. {more_bits(kind)}")
    return figures


def told(figures: dict[str, Any]) -> str:
    """The figures of `compare` as two lines."""
    left = figures["utterances_that_left_them"]
    ends = (
        f"{left} of them ended by an id out of its slot, as its source scores it too"
        if left
        else "every id in its slot"
    )
    return (
        f"check: {figures['greedy_ids_same']} of {figures['greedy_ids']} greedy ids are the source's best, the others "
        f"tied within {figures['largest_tie']:g} of the spread; scores differ by "
        f"{figures['scores_differ_by']:g} of it (limit {figures['limit']:g}), the best {TOP} by at most "
        f"{figures['top_scores_differ_by_at_most']:g}\n"
        f"check: {figures['frames_in_their_slots']} frames in {figures['utterances']} utterances, {ends}"
    )
