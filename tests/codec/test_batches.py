"""Many streams in one call: each gives what it gives alone, whatever the others do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from snac import SNAC

from orpheus.codec import convolutions
from orpheus.codec import snac as codec_module
from orpheus.codec.snac import SAMPLES_PER_FRAME, SnacCodec
from orpheus.errors import UserError
from tests.codec.test_snac import TOLERANCE, random_codes
from tests.support.codec_fixtures import TINY, speech_like, tiny_snac


def pushed(codec: SnacCodec, plan: list[list[int]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Push frames by `plan` (a row a call, a number of frames for each stream); each one's samples and the whole."""
    count = len(plan[0]) if plan else 0
    codes = [random_codes(sum(frames[row] for frames in plan), seed=row) for row in range(count)]
    streams = [codec.streaming(seed=row) for row in range(count)]
    pieces: list[list[np.ndarray]] = [[] for _ in streams]
    for frames in plan:
        ends = [stream.frames + n for stream, n in zip(streams, frames, strict=True)]
        parts = [c.slice(s.frames, end) for s, c, end in zip(streams, codes, ends, strict=True)]
        for row, samples in enumerate(codec.push_many(streams, parts)):
            pieces[row].append(samples)
        assert [stream.frames for stream in streams] == ends
    joined = [np.concatenate([*piece, stream.finish()]) for piece, stream in zip(pieces, streams, strict=True)]
    return [(j, codec.decode(c, seed=row)) for row, (j, c) in enumerate(zip(joined, codes, strict=True))]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6).flatmap(lambda rows: st.lists(st.lists(st.integers(0, 4), min_size=rows, max_size=rows),
                                                      max_size=6)))  # fmt: skip
def test_many_streams_equal_each_alone(plan):
    for joined, whole in pushed(SnacCodec.from_model(tiny_snac()), plan):
        assert joined.shape == whole.shape
        assert np.abs(joined - whole).max(initial=0) < TOLERANCE


def test_streams_of_another_age_share_a_batch(codec, monkeypatch):
    """From the third frame on; before, they are at other places, and the same call keeps them apart."""
    sizes: list[int] = []
    push = SnacCodec._push
    monkeypatch.setattr(SnacCodec, "_push", lambda self, x, states: sizes.append(len(states)) or push(self, x, states))
    results = pushed(codec, [[5, 0, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]])
    assert sizes[:8] == [1, *(1, 2), *(1, 2), *(1, 2), 3]  # call by call; after them `decode`, alone
    assert all(np.abs(joined - whole).max() < TOLERANCE for joined, whole in results)


def test_rows_do_not_see_each_other(codec):
    """Another neighbour, the same samples: a row that leaked would differ by far more than rounding."""
    frames = [random_codes(4, seed) for seed in range(3)]
    outs = []
    for neighbour in (1, 2):
        pair = [codec.streaming(0), codec.streaming(9)]
        outs.append(codec.push_many(pair, [frames[0], frames[neighbour]]))
    assert np.abs(outs[0][0] - outs[1][0]).max() < TOLERANCE
    assert np.abs(outs[0][1] - outs[1][1]).max() > 100 * TOLERANCE


def test_a_cpu_takes_a_few_rows_at_a_time(codec, monkeypatch):
    monkeypatch.setattr(codec_module, "ROWS_ON_CPU", 2)
    assert all(np.abs(joined - whole).max() < TOLERANCE for joined, whole in pushed(codec, [[2] * 5, [3] * 5]))


def test_wrong_calls_move_no_stream_on(codec):
    streams, frame = [codec.streaming(), codec.streaming()], random_codes(1)
    wrong = frame._replace(middle=frame.middle[:1])
    for arguments, says in (((streams, [frame, wrong]), "shapes"), ((streams, [frame]), "2 streams and 1 codes"),
                            (([streams[0]] * 2, [frame, frame]), "no stream twice")):  # fmt: skip
        with pytest.raises(UserError, match=says):
            codec.push_many(*arguments)
    assert [stream.frames for stream in streams] == [0, 0]
    assert codec.push_many([], []) == []
    streams[1].finish()
    with pytest.raises(UserError, match="finished"):
        codec.push_many(streams, [frame, frame])
    assert streams[0].frames == 0


def test_upsampling_as_a_product_is_the_convolution():
    """Whatever the kernel, stride and padding; both sides of FEW."""
    for stride, kernel in ((8, 16), (5, 10), (2, 5), (3, 3)):
        padding = (kernel - stride) // 2
        conv = torch.nn.ConvTranspose1d(6, 4, kernel, stride, padding, output_padding=(kernel - stride) % 2)
        layer = convolutions.Upsample(conv)
        x = torch.randn(2, 6, 11)
        with torch.inference_mode():
            padded = torch.nn.functional.pad(x, (layer.span, 0))
            one, other = layer._product(padded), layer._convolution(padded)
            assert one.shape == other.shape == (2, 4, 11 * stride)
            assert torch.allclose(one, other, atol=1e-5)
            assert torch.allclose(one[..., padding:], conv(x)[..., : one.shape[-1] - padding], atol=1e-5)


def test_weight_norm_is_folded_once():
    """The decoder's copies are plain tensors: what SNAC computes from g and v at each call is computed at loading."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = SNAC(**TINY).eval()
    layer = model.decoder.model[-2]
    assert any("weight" in name and "parametrizations" in name for name in model.decoder.state_dict())
    codec = SnacCodec.from_model(model)
    codes = random_codes(2)
    before = codec.decode(codes)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(5)  # SNAC itself would now sound otherwise
    assert np.array_equal(codec.decode(codes), before)
    assert len(before) == 2 * SAMPLES_PER_FRAME


def test_the_folded_encoder_is_snacs_own_to_the_last_bit(codec):
    sound = torch.from_numpy(speech_like(1.5, seed=5)[: 16 * SAMPLES_PER_FRAME])[None, None]
    with torch.inference_mode():
        assert torch.equal(codec._encoder(sound), tiny_snac().encoder(sound))
