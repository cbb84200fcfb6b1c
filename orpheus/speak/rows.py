"""Utterances through the engine and the codec as one batch: ids in any order, each frame decoded as it comes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from orpheus.codec.snac import SnacCodec
from orpheus.config import SamplingOptions
from orpheus.engines.base import Engine
from orpheus.speak.reading import Closed, Spoken
from orpheus.speak.utterance import Utterance


def run(
    engine: Engine,
    codec: SnacCodec,
    rows: Sequence[Utterance],
    sampling: SamplingOptions,
    closed: Closed = lambda: False,
) -> Spoken:
    """Chunks of all rows as they come, and after a row's last chunk its Speech (or why there is none).

    As soon as `closed()` it ends, with what is under way left unfinished.
    """
    started = time.perf_counter()
    for row in rows:
        row.started = started
    running = list(rows)
    due: list[Utterance] = []  # those with a frame that is not decoded yet: rows mostly complete theirs in one step
    for index, token_id in engine.stream([r.prompt for r in rows], sampling, [r.seed for r in rows]):
        if closed():
            return
        row = rows[index]
        if row.over:
            continue  # the guard has cut it, and the engine does not know
        if row in due:  # this engine has another order: no row waits for the others longer than for its next id
            yield from _decode(codec, due)
        if row.push(token_id):
            due.append(row)
        ended = row.frames.stop is not None or row.tokens == sampling.max_new_tokens
        if ended or row.cut or len(due) == len(running):
            yield from _decode(codec, due)
        for row in [r for r in running if r.cut or (ended and r is row)]:
            running.remove(row)
            yield from row.finish(sampling)
        if not running:
            return


def _decode(codec: SnacCodec, due: list[Utterance]) -> Iterator[np.ndarray]:
    """Decode the newest frame of each row in `due`, which is empty then; the chunks that became final."""
    rows = due.copy()
    due.clear()
    chunks = codec.push_many([row.decoder for row in rows], [row.codes[-1] for row in rows])
    for row, chunk in zip(rows, chunks, strict=True):
        yield from row.keep(chunk)
