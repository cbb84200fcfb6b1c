"""Many streams, one running batch: every row has the ids that it has alone, whoever comes and goes beside it."""

from __future__ import annotations

import dataclasses
import gc
import threading
import time
from contextlib import closing
from functools import cache
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orpheus.config import PRESETS, SamplingOptions
from orpheus.engines.torch.engine import TorchEngine
from orpheus.engines.torch.llama import LlamaDecoder
from orpheus.engines.torch.shared import SharedEngine, _Reader, _Worker, share
from orpheus.engines.torch.slots import Row, Singles, Slots
from orpheus.engines.torch.transformers import TransformersDecoder
from orpheus.errors import UserError
from orpheus.format.prompt import Renderer
from orpheus.model.base import load_base
from tests.support.threads import WAIT_S, in_threads, until
from tests.support.tiny import speaking_engine
from tests.support.voices import ScriptedEngine, rows_of

PROMPTS = [[262, 256, 40, 41, 258, 263, 264, 260], [262, 256, 50, 258, 263, 264, 260],
           [262, 256, *range(30, 70), 258, 263, 264, 260]]  # fmt: skip
LONG = SamplingOptions(max_new_tokens=2000, decoding="framed", temperature=0.3)


@pytest.fixture(scope="module")
def engine(tokenizer, layout):
    """One that ends most utterances within some frames."""
    return speaking_engine(tokenizer, layout)


@pytest.fixture(scope="module")
def endless(tokenizer, layout):
    """One that speaks on until it is stopped."""
    return speaking_engine(tokenizer, layout, ends=0)


@pytest.fixture(scope="module")
def engines(engine):
    """The three ways of stepping: tokens, as on a CPU; frames, as on a GPU; and by transformers' forward pass."""
    by_frame, other = TorchEngine(engine.loaded), TorchEngine(engine.loaded)
    by_frame.by_frame, by_frame.record = True, lambda: None
    other.decoder = TransformersDecoder
    return {"token": engine, "frame": by_frame, "transformers": other}


@pytest.fixture(scope="module")
def alone(engine):
    """The ids of a row by itself."""

    @cache
    def ids(prompt: int, sampling: SamplingOptions, seed: int) -> list[int]:
        return rows_of(engine, [PROMPTS[prompt]], sampling, [seed])[0]

    return ids


@pytest.fixture
def shared(endless):
    """An engine of two slots; its thread ends with the test."""
    with closing(SharedEngine(endless, 2)) as it:
        yield it


# ---- the same ids ----

sampling_options = st.builds(
    SamplingOptions,
    temperature=st.sampled_from([0.0, 0.3, 0.6, 1.0, 1.5]),
    top_p=st.sampled_from([0.1, 0.9, 0.95, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.1, 1.5, 0.8]),
    max_new_tokens=st.sampled_from([1, 7, 13, 24]),
    decoding=st.sampled_from(["strict", "framed"]),
)
arrivals = st.lists(
    st.tuples(
        st.integers(0, 30),  # the turn in which it comes
        st.integers(0, len(PROMPTS) - 1),
        sampling_options,
        st.integers(0, 3),  # seed
        st.none() | st.integers(0, 30),  # turns after which its reader goes away
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("way", ["token", "frame", "transformers"])
@settings(max_examples=25, deadline=None)
@given(arrivals=arrivals, places=st.integers(1, 4))
def test_a_row_has_the_ids_that_it_has_alone(engines, alone, way, arrivals, places):
    """Whenever it comes, whatever its options, and whoever is beside it, joins, ends, or goes away."""
    worker, readers = _Worker(engines[way], places), [_Reader(1) for _ in arrivals]
    turn = 0
    while turn <= 30 or worker.waiting or worker.running:
        for reader, (comes, prompt, sampling, seed, leaves) in zip(readers, arrivals, strict=True):
            if comes == turn:
                worker.incoming.put([Row(PROMPTS[prompt], sampling, seed, reader)])
            if leaves is not None and comes + leaves == turn:
                reader.closed = True
        if not worker.incoming.empty() or worker.waiting or worker.running:
            assert worker.receive()
            worker.turn()
        assert worker.running <= places and turn < 500
        turn += 1
    for reader, (_, prompt, sampling, seed, leaves) in zip(readers, arrivals, strict=True):
        arrived = [reader.arrived.get() for _ in range(reader.arrived.qsize())]
        ids = [token for items in arrived if items for _, token in items]
        expected = alone(prompt, sampling, seed)
        if leaves is None:
            assert ids == expected and arrived[-1] is None
        else:
            assert ids == expected[: len(ids)]


@pytest.fixture(scope="module")
def embedded():
    """The voice that comes with the project, and prompts for it."""

    def load(**options):
        loaded = load_base(PRESETS["tiny"].base, load_in_4bit=False, **options)
        renderer = Renderer(loaded.tokenizer, loaded.layout)
        texts = ("One two three.", "Hello there, my friend.", "Nine.", "A red house stands here.")
        return TorchEngine(loaded), [renderer.prompt(text) for text in texts]

    return load


def test_many_threads_with_the_embedded_voice(embedded):
    """Strict and framed, from eight threads, in three slots. In double precision, where no sum's order can tell."""
    engine, prompts = embedded(dtype=torch.float64)
    options = [SamplingOptions(max_new_tokens=60), SamplingOptions(temperature=0, max_new_tokens=40),
               SamplingOptions(max_new_tokens=50, decoding="framed", top_p=0.8),
               SamplingOptions(temperature=1.0, top_p=1.0, repetition_penalty=1.3, max_new_tokens=45)]  # fmt: skip
    asked = [([prompts[i % 4], prompts[(i + 1) % 4]], options[(i // 2) % 4], [i, i + 100]) for i in range(8)]
    expected = [[rows_of(engine, [p], o, [s])[0] for p, s in zip(ps, seeds, strict=True)] for ps, o, seeds in asked]
    with closing(share(engine, 3)) as shared:
        assert in_threads(*(lambda a=a: rows_of(shared, *a) for a in asked)) == expected
    assert any(len(row) < 60 for row in expected[0] + expected[1])  # some end by themselves


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no product of bfloat16")
def test_in_16_bit_a_row_does_not_depend_on_its_neighbours(embedded):
    """Nearly every id is a tie there: one sum that was rounded otherwise would show."""
    engine, prompts = embedded(dtype=torch.bfloat16)
    options = SamplingOptions(max_new_tokens=60)
    with closing(SharedEngine(engine, 8)) as shared:
        alone = [rows_of(shared, [p], options, [seed])[0] for seed, p in enumerate(prompts)]
        together = in_threads(*(lambda s=s, p=p: (time.sleep(s / 50), rows_of(shared, [p], options, [s]))[1][0]
                                for s, p in enumerate(prompts)))  # fmt: skip
    assert together == alone


def test_a_model_that_is_no_llama(engine, layout):
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(vocab_size=layout.audio_end, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                           num_attention_heads=2, num_key_value_heads=1, head_dim=16)  # fmt: skip
    torch.manual_seed(0)
    mistral = TorchEngine(dataclasses.replace(engine.loaded, model=MistralForCausalLM(config)))
    options = SamplingOptions(max_new_tokens=16, decoding="framed")
    expected = [rows_of(mistral, [PROMPTS[i]], options, [i]) for i in range(3)]
    with closing(share(mistral, 2)) as shared:
        assert in_threads(*(lambda i=i: rows_of(shared, [PROMPTS[i]], options, [i]) for i in range(3))) == expected
        assert all(isinstance(group, Singles) for group in shared._worker.groups.values())


# ---- coming and going ----


def test_closing_gives_the_slot_to_the_next(shared, endless):
    options = dataclasses.replace(LONG, max_new_tokens=14)
    first, second = (shared.stream(PROMPTS[:1], LONG, [seed]) for seed in (1, 2))
    assert [len(list(islice(rows, 7))) for rows in (first, second)] == [7, 7]
    third = shared.stream(PROMPTS[1:2], options, [3])
    assert until(lambda: shared._worker.waiting) and shared._worker.running == 2
    first.close()
    assert list(third) == list(endless.stream(PROMPTS[1:2], options, [3]))
    assert next(first, None) is None and next(second) and shared._worker.running == 1


def test_first_come_first_served(endless):
    options, order = dataclasses.replace(LONG, max_new_tokens=7), []

    def read(stream):
        order.append((len(list(stream)), stream))

    with closing(SharedEngine(endless, 1)) as shared:
        busy = shared.stream(PROMPTS[:1], LONG, [0])
        next(busy)
        streams = [shared.stream(PROMPTS[:2], options, [i, i + 1]) for i in range(4)]
        busy.close()
        in_threads(*(lambda s=s: read(s) for s in reversed(streams)))
    assert [stream for _, stream in order] == streams and {count for count, _ in order} == {14}


def test_a_stream_is_closed_while_another_thread_waits_for_it(shared, monkeypatch):
    stream = shared.stream(PROMPTS[:1], LONG, [1])
    next(stream)
    go_on = threading.Event()
    monkeypatch.setattr(Slots, "step", lambda self, step=Slots.step: (go_on.wait(WAIT_S), step(self))[1])
    taken: list[int] = []
    reader = threading.Thread(target=lambda: taken.extend(token for _, token in stream))
    reader.start()
    time.sleep(0.05)
    stream.close()  # no step ends meanwhile: the reader is woken by this
    reader.join(WAIT_S)
    assert not reader.is_alive() and len(taken) < LONG.max_new_tokens
    go_on.set()
    assert until(lambda: not shared._worker.running)


def test_a_stream_that_is_dropped_leaves(shared):
    stream = shared.stream(PROMPTS[:1], LONG, [1])
    next(stream)
    knot = [stream]
    knot.append(knot)
    del stream, knot
    gc.collect()
    assert until(lambda: not shared._worker.running)


def test_an_error_reaches_all_and_the_engine_works_again(shared, endless, monkeypatch):
    options = dataclasses.replace(LONG, max_new_tokens=14)
    streams = [shared.stream(PROMPTS[:1], LONG, [seed]) for seed in range(4)]  # two run, two wait
    assert next(streams[0]) and next(streams[1])

    def fails(*_):
        raise MemoryError("no room left")

    with monkeypatch.context() as patched:
        patched.setattr(LlamaDecoder, "advance", fails)
        errors = []
        for stream in streams:
            with pytest.raises(RuntimeError, match=r"speaking failed \(MemoryError\): no room left") as caught:
                list(stream)
            errors.append(caught.value)
            assert next(stream, None) is None
    assert len(set(map(id, errors))) == 4  # a traceback is one reader's
    assert list(shared.stream(PROMPTS[:1], options, [3])) == list(endless.stream(PROMPTS[:1], options, [3]))


def test_it_sleeps_when_there_is_nothing_to_do(shared):
    assert shared._thread is None  # nothing was asked for yet
    list(shared.stream(PROMPTS[:1], SamplingOptions(max_new_tokens=7), [0]))
    assert until(lambda: not shared._worker.running)
    used = time.process_time()
    time.sleep(0.3)
    assert shared._thread.is_alive() and time.process_time() - used < 0.1


def test_closing_the_engine(endless):
    shared = SharedEngine(endless, 1)
    running, waiting = (shared.stream(PROMPTS[:1], LONG, [seed]) for seed in (1, 2))
    next(running)
    shared.close()
    assert not shared._thread.is_alive()
    for stream in (running, waiting):
        with pytest.raises(UserError, match="the engine was closed"):
            list(stream)
    with pytest.raises(UserError, match="the engine was closed"):
        shared.stream(PROMPTS[:1], LONG, [1])
    shared.close()


def test_an_engine_that_nobody_has_ends_its_thread(endless):
    shared = SharedEngine(endless, 1)
    stream = shared.stream(PROMPTS[:1], LONG, [1])
    thread = shared._thread
    del shared
    assert next(stream) and thread.is_alive()  # the stream has it
    del stream
    assert until(lambda: not thread.is_alive())


def test_what_is_refused_and_what_is_left_as_it_is(engine, layout, shared):
    with pytest.raises(UserError, match="slots is 0, expected 1 or more"):
        share(engine, 0)
    with pytest.raises(UserError, match=r"the prompt has 8 tokens and up to 16380 .* context of 16384"):
        shared.stream(PROMPTS[:1], SamplingOptions(max_new_tokens=16380), [0])
    assert list(shared.stream([], LONG, [])) == []
    other = ScriptedEngine(layout, [])
    assert share(other, 4) is other and (shared.name, shared.layout) == ("torch", layout)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("decoding", ["strict", "framed"])
def test_on_the_gpu(base_dir, caplog, decoding):
    """From several threads, by recorded frames: the ids of the engine alone, which steps token by token."""
    loaded = load_base(str(base_dir), load_in_4bit=False, backend="transformers", device="cuda", dtype=torch.float32)
    by_token = TorchEngine(loaded)
    by_token.by_frame = False
    options = SamplingOptions(max_new_tokens=35, decoding=decoding)
    expected = [rows_of(by_token, [PROMPTS[i % 3]], options, [i]) for i in range(6)]
    with closing(share(TorchEngine(loaded), 4)) as shared:
        for _ in range(2):
            calls = (lambda i=i: rows_of(shared, [PROMPTS[i % 3]], options, [i]) for i in range(6))
            assert in_threads(*calls) == expected
    assert "no CUDA graph" not in caplog.text
