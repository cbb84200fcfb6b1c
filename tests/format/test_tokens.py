"""The token layout: an exact inverse pair, and every way an id can be wrong."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orpheus.errors import UserError
from orpheus.format.tokens import CODEBOOK_SIZE, FRAME_SLOTS, ORPHEUS, Codes, FrameStream, Stop, TokenLayout

CODE = st.integers(0, 4095)


@st.composite
def any_codes(draw, max_frames=12):
    frames = draw(st.integers(0, max_frames))
    return Codes(
        *(np.array(draw(st.lists(CODE, min_size=n, max_size=n)), np.int64) for n in (frames, 2 * frames, 4 * frames))
    )


def same(a: Codes, b: Codes) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_published_ids():
    """The figures of the published tokenizer, written out: the constants may not drift."""
    assert (ORPHEUS.bos, ORPHEUS.end_of_text, ORPHEUS.pad) == (128000, 128009, 128263)
    assert (ORPHEUS.start_of_human, ORPHEUS.end_of_human) == (128259, 128260)
    assert (ORPHEUS.start_of_ai, ORPHEUS.end_of_ai) == (128261, 128262)
    assert (ORPHEUS.start_of_speech, ORPHEUS.end_of_speech) == (128257, 128258)
    assert (ORPHEUS.audio_start, ORPHEUS.audio_end) == (128266, 156938)


def test_frame_order_written_out():
    """One frame against the order that every implementation of the format agrees on."""
    codes = Codes(np.array([10]), np.array([20, 21]), np.array([30, 31, 32, 33]))
    expected = [10, 20 + 4096, 30 + 8192, 31 + 12288, 21 + 16384, 32 + 20480, 33 + 24576]
    assert ORPHEUS.flatten(codes).tolist() == [128266 + e for e in expected]


@given(any_codes())
def test_round_trip(codes):
    ids = ORPHEUS.flatten(codes)
    back, stop = ORPHEUS.unflatten(ids)
    assert same(back, codes)
    assert (stop.kind, stop.index, stop.dropped) == (Stop.END_OF_IDS, len(ids), 0)


@pytest.mark.parametrize("code", [0, 1, 4094, 4095])
def test_extreme_codes_survive_in_every_slot(code):
    """Defects 1 and 2: `token > 0` loses code 0, `> 4096` admits 4096."""
    codes = Codes(*(np.full(n, code) for n in (2, 4, 8)))
    back, stop = ORPHEUS.unflatten(ORPHEUS.flatten(codes))
    assert same(back, codes) and stop.kind is Stop.END_OF_IDS


@pytest.mark.parametrize("slot", range(7))
@pytest.mark.parametrize("code", [-1, 4096])
def test_one_past_the_range_is_rejected_in_every_slot(slot, code):
    ids = ORPHEUS.flatten(Codes(np.zeros(3, int), np.zeros(6, int), np.zeros(12, int)))
    at = 7 + slot
    ids[at] = 128266 + 4096 * slot + code
    codes, stop = ORPHEUS.unflatten(ids)
    assert codes.frames == 1 and (stop.kind, stop.index, stop.dropped) == (Stop.OUT_OF_RANGE, at, slot)


@pytest.mark.parametrize("bad", [-1, 0, 4096, 128000, 128265, 156938, 156939, 2**40])
def test_ids_that_are_not_audio_stop_it(bad):
    ids = ORPHEUS.flatten(Codes(np.arange(2), np.arange(4), np.arange(8)))
    ids[9] = bad
    codes, stop = ORPHEUS.unflatten(ids)
    assert codes.frames == 1 and stop.kind is Stop.OUT_OF_RANGE and stop.token_id == bad
    assert str(bad) in str(stop) and "slot 2 allows" in str(stop)


def test_an_id_of_another_slot_is_not_taken_for_its_own():
    """Defect 3: a running counter would read every id after a lost one in the wrong slot."""
    ids = ORPHEUS.flatten(Codes(np.arange(5), np.arange(10), np.arange(20)))
    codes, stop = ORPHEUS.unflatten(np.delete(ids, 8))  # one id lost in frame 1
    assert codes.frames == 1 and same(codes, Codes(np.arange(1), np.arange(2), np.arange(4)))
    assert stop.kind is Stop.OUT_OF_RANGE and stop.index == 8 and "belongs to slot 2" in str(stop)


@given(any_codes(), st.integers(0, 6))
def test_every_length_mod_7(codes, extra):
    """Defect 6: a count rounded up reads past the end when six ids are left over."""
    ids = ORPHEUS.flatten(codes)
    tail = [ORPHEUS.slot_range(slot)[0] for slot in range(extra)]
    back, stop = ORPHEUS.unflatten([*ids, *tail])
    assert same(back, codes) and stop.dropped == extra
    assert ("unfinished" in str(stop)) == (extra > 0)


def test_end_of_speech_is_named():
    ids = [*ORPHEUS.flatten(Codes(np.arange(1), np.arange(2), np.arange(4))), ORPHEUS.end_of_speech, ORPHEUS.end_of_ai]
    codes, stop = ORPHEUS.unflatten(ids)
    assert codes.frames == 1 and (stop.kind, stop.index) == (Stop.END_OF_SPEECH, 7)


@settings(max_examples=200)
@given(st.lists(st.one_of(st.integers(-5, 160000), st.integers(128266, 156937)), max_size=40))
def test_unflatten_never_raises_and_the_stream_agrees(ids):
    """The streaming twin gives the same frames and the same reason, id by id."""
    whole, reason = ORPHEUS.unflatten(ids)
    stream = FrameStream(ORPHEUS)
    frames = [frame for frame in map(stream.push, ids) if frame is not None]
    assert same(Codes.concatenate(frames), whole)
    assert stream.finish() == reason
    assert 7 * whole.frames + reason.dropped == reason.index


def test_ids_after_the_stop_are_ignored():
    stream = FrameStream(ORPHEUS)
    assert stream.push(ORPHEUS.end_of_speech) is None
    assert all(stream.push(ORPHEUS.slot_range(s)[0]) is None for s in range(7))
    assert stream.finish().kind is Stop.END_OF_SPEECH


@pytest.mark.parametrize(
    "codes, says",
    [
        (([0], [0, 0], [0, 0, 0, 4096]), r"code 4096 at index 3 of layer 3 is outside 0\.\.4095"),
        (([-1], [0, 0], [0] * 4), "code -1 at index 0 of layer 1"),
        (([0], [0], [0] * 4), r"\[T\], \[2T\], \[4T\]"),
        (([0.5], [0, 0], [0] * 4), "float"),
        (([0], [0, 0]), r"\[T\], \[2T\], \[4T\]"),
        (([[0]], [[0, 0]], [[0] * 4]), r"\[T\], \[2T\], \[4T\]"),
    ],
)
def test_flatten_says_what_is_wrong(codes, says):
    with pytest.raises(UserError, match=says):
        ORPHEUS.flatten(codes)


def test_layout_of_a_smaller_tokenizer(tokenizer, layout):
    assert layout.audio_start == tokenizer.convert_tokens_to_ids("<custom_token_10>")
    assert layout.end_of_speech == tokenizer.convert_tokens_to_ids("<custom_token_2>")
    assert layout.audio_end - layout.audio_start == FRAME_SLOTS * CODEBOOK_SIZE
    codes = Codes(np.array([4095]), np.array([0, 4095]), np.array([0, 1, 2, 4095]))
    assert same(layout.unflatten(layout.flatten(codes))[0], codes)


class Vocabulary:
    """A tokenizer as far as TokenLayout looks at it."""

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary

    def get_vocab(self):
        return self.vocabulary


def test_layout_of_the_published_vocabulary():
    names = {f"<custom_token_{k}>": 128256 + k for k in range(28684)}
    layout = TokenLayout.from_tokenizer(Vocabulary(names | {"<|begin_of_text|>": 128000, "<|eot_id|>": 128009}))
    assert layout == ORPHEUS


def test_tokenizers_that_do_not_fit_are_refused(tokenizer):
    with pytest.raises(UserError, match="no token <custom_token_1>.*Orpheus base"):
        TokenLayout.from_tokenizer(Vocabulary({"hello": 0}))
    broken = dict(tokenizer.get_vocab())
    a, b = "<custom_token_500>", "<custom_token_501>"
    broken[a], broken[b] = broken[b], broken[a]
    with pytest.raises(UserError, match="not contiguous: <custom_token_500>"):
        TokenLayout.from_tokenizer(Vocabulary(broken))


def test_slices_and_frames():
    codes = Codes(np.arange(3), np.arange(6), np.arange(12))
    assert same(codes.slice(1, 3), Codes(np.arange(1, 3), np.arange(2, 6), np.arange(4, 12)))
    assert same(Codes.concatenate([codes.slice(i, i + 1) for i in range(3)]), codes)
    assert Codes.concatenate([]).frames == 0


def test_an_hour_of_audio_is_quick():
    """295,000 ids; the bound is loose, only a loop over ids would break it."""
    rng = np.random.default_rng(0)
    codes = Codes(*(rng.integers(0, 4096, n) for n in (42188, 84376, 168752)))
    started = time.process_time()
    back, _ = ORPHEUS.unflatten(ORPHEUS.flatten(codes))
    assert same(back, codes) and time.process_time() - started < 1.0
