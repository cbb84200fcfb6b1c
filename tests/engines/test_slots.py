"""The running batch itself: the memory that it takes, and frames that are recorded once for all rows."""

from __future__ import annotations

import dataclasses

import pytest

from orpheus.config import SamplingOptions
from orpheus.engines.torch import frames, slots
from orpheus.engines.torch.engine import TorchEngine
from orpheus.engines.torch.slots import Row, Slots
from tests.engines.test_engine import Recorder
from tests.support.tiny import speaking_engine
from tests.support.voices import rows_of

PROMPTS = [[262, 256, 40, 41, 258, 263, 264, 260], [262, 256, 50, 258, 263, 264, 260],
           [262, 256, *range(30, 70), 258, 263, 264, 260]]  # fmt: skip


@pytest.fixture(scope="module")
def engine(tokenizer, layout):
    return speaking_engine(tokenizer, layout)


@pytest.fixture(scope="module")
def by_frame(engine):
    """The host sees ids a frame at a time, as on a GPU; steps are run, not recorded."""
    other = TorchEngine(engine.loaded)
    other.by_frame, other.record = True, lambda: None
    return other


# ---- memory ----


def test_the_cache_has_the_rows_and_columns_that_are_needed(engine):
    group = Slots(engine, "framed", 4)

    def shape():
        return tuple(group.batch.decoder.cache.shape[i] for i in (2, 4))

    def join(count):
        group.join(Row(PROMPTS[0], SamplingOptions(decoding="framed", max_new_tokens=count), 1))

    for _ in range(30):  # each begins at the first column again
        join(240)
        for _ in range(14):
            group.step()
        group.leave(0)
        assert shape() == (1, 256)
    join(100)
    join(2000)
    assert shape() == (2, 2048) and group.batch.state["draws"].shape == (2, 2048)
    join(10)
    assert shape() == (4, 2048)
    for _ in range(3):
        group.leave(0)
    join(600)
    assert shape() == (4, 2048)  # a quarter would not do
    group.leave(0)
    join(10)
    assert shape() == (4, 256)


# ---- a frame at a time ----


def steps(group, rows, count):
    for row in rows:
        group.join(row)
    drawn = [[] for _ in rows]
    for _ in range(count):
        for ids, new in zip(drawn, group.step(), strict=True):
            ids += new
    return drawn


@pytest.mark.parametrize("decoding", ["strict", "framed"])
def test_recorded_frames_are_few_and_are_kept(engine, monkeypatch, decoding):
    monkeypatch.setattr(frames, "BOUND_STEP", 16)
    monkeypatch.setattr(slots, "BOUND_STEP", 16)
    recorder = Recorder()
    recording = TorchEngine(engine.loaded)
    recording.by_frame, recording.record = True, lambda: recorder
    group = Slots(recording, decoding, 6)
    options = SamplingOptions(max_new_tokens=21, decoding=decoding, temperature=0.3, top_p=0.5)
    for times in (1, 2):
        drawn = steps(group, [Row(PROMPTS[i % 2], options, i) for i in range(3)], 3)
        for i, ids in enumerate(drawn):
            expected = rows_of(engine, [PROMPTS[i % 2]], options, [i])[0]
            assert ids[: len(expected)] == expected
        # 8 + 21 columns, 16 to a recording; three rows are computed as four, and the fourth asks for nothing.
        assert (recorder.recorded, recorder.replayed) == (2, 3 * times)
        for _ in range(3):
            group.leave(0)
    steps(group, [Row(PROMPTS[0], options, i) for i in range(4)], 1)
    assert recorder.recorded == 2


def test_what_the_frames_refer_to_stays_in_place(by_frame):
    group = Slots(by_frame, "framed", 4)
    options = SamplingOptions(max_new_tokens=200, decoding="framed")

    def addresses():
        part = group._part(2)
        tensors = [*part.state.values(), part.decoder.cache, part.decoder.padding, part.seen.table]
        return [t.data_ptr() for t in tensors]

    steps(group, [Row(PROMPTS[0], options, 1), Row(PROMPTS[1], options, 2)], 1)
    before = addresses()
    group.leave(0)
    steps(group, [Row(PROMPTS[2], options, 3)], 0)
    group.step()
    assert addresses() == before


def test_a_flat_row_is_drawn_from_all_as_long_as_it_runs(engine, by_frame):
    """Temperature 10 makes the nucleus wider than the list that a frame tries first; a neighbour is not changed."""
    group = Slots(by_frame, "strict", 2)
    flat = SamplingOptions(temperature=10.0, max_new_tokens=14)
    plain = SamplingOptions(max_new_tokens=28)
    hot, cool = steps(group, [Row(PROMPTS[0], flat, 1), Row(PROMPTS[1], plain, 2)], 2)
    for ids, prompt, options, seed in ((hot, PROMPTS[0], flat, 1), (cool, PROMPTS[1], plain, 2)):
        expected = rows_of(engine, [prompt], options, [seed])[0]
        assert ids[: len(expected)] == expected[: len(ids)]
    assert all(row.flat for row in group.rows) and len(group.frames) == 1
    group.leave(0)
    group.leave(0)
    steps(group, [Row(PROMPTS[1], plain, 2), Row(PROMPTS[1], plain, 3)], 1)
    assert not any(row.flat for row in group.rows)


@pytest.mark.parametrize("decoding", ["strict", "framed"])
def test_rows_that_are_moved_and_grow_go_on_as_they_were(engine, decoding):
    """The first leaves, so the last takes its place; one comes that needs more room; one is greedy."""
    group = Slots(engine, decoding, 4)
    plain = SamplingOptions(decoding=decoding, repetition_penalty=3.0, max_new_tokens=42)
    best, long = dataclasses.replace(plain, temperature=0.0), dataclasses.replace(plain, max_new_tokens=400)
    rows = [Row(PROMPTS[i % 3], options, i) for i, options in enumerate((plain, best, plain, long))]
    drawn: dict[int, list[int]] = {row.seed: [] for row in rows}

    def speak(count):
        for _ in range(count):
            for row, ids in zip(group.rows, group.step(), strict=True):
                drawn[row.seed] += ids

    for row in rows[:3]:
        group.join(row)
    speak(10)
    group.leave(0)
    assert group.rows == [rows[2], rows[1]]
    speak(4)
    group.join(rows[3])
    assert group.room == 512
    speak(28)
    for row in rows:
        expected = rows_of(engine, [row.prompt], row.sampling, [row.seed])[0]
        ids = drawn[row.seed][: len(expected)]
        assert ids == expected[: len(ids)] and len(ids) >= min(10, len(expected))
