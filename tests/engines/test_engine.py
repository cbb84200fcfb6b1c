"""The torch engine: what transformers generates, left padding, one generator per row, the stop rule."""

from __future__ import annotations

import dataclasses
import logging
from itertools import zip_longest

import pytest
import torch

from orpheus.config import SamplingOptions
from orpheus.engines.torch import engine as torch_engine
from orpheus.engines.torch import frames
from orpheus.engines.torch.cpu import FEW_ROWS, TurnedHead, quick_products, turned_head
from orpheus.engines.torch.engine import TorchEngine
from orpheus.engines.torch.llama import LlamaDecoder, why_not_llama
from orpheus.engines.torch.transformers import TransformersDecoder
from orpheus.errors import UserError
from orpheus.model.adapter import attach_adapter, merge
from orpheus.model.base import load_base
from orpheus.threads import NARROW
from tests.support import old_engine
from tests.support.slotted import slotted
from tests.support.tiny import build_base
from tests.support.voices import rows_of

PROMPTS = [[262, 256, 40, 41, 258, 263, 264, 260], [262, 256, 50, 258, 263, 264, 260]]


@pytest.fixture(scope="module")
def engine(base_dir):
    return TorchEngine(load_base(str(base_dir), load_in_4bit=False))


@pytest.fixture(scope="module")
def engines(base_dir, adapter_dir, engine):
    """The tiny model in every form that is spoken with; and by transformers' forward pass."""

    def attached(in_4bit):
        return attach_adapter(load_base(str(base_dir), load_in_4bit=in_4bit), adapter_dir)

    by_transformers = TorchEngine(engine.loaded)
    by_transformers.decoder = TransformersDecoder
    return {
        "plain": engine,
        "transformers": by_transformers,
        "adapter": TorchEngine(attached(False)),
        "merged": TorchEngine(merge(attached(False))),
        "4bit": TorchEngine(load_base(str(base_dir), load_in_4bit=True)),
        "4bit adapter": TorchEngine(attached(True)),
    }


FORMS = ["plain", "transformers", "adapter", "merged", "4bit", "4bit adapter"]


def run(engine, prompts, seeds, **options):
    return rows_of(engine, prompts, SamplingOptions(**options), seeds)


@pytest.fixture
def speak(engine, layout):
    """`run` with the random model made to speak."""

    def use(prompts, seeds, end_after=None, engine=engine, **options):
        with slotted(engine.loaded.model, layout, end_after):
            return run(engine, prompts, seeds, **options)

    return use


def test_greedy_equals_transformers_generate(engine, layout, speak):
    """Same ids as `model.generate` with the same settings, through prompt, cache and penalty."""
    for prompt in PROMPTS:
        ours = speak([prompt], [0], temperature=0, max_new_tokens=30)[0]
        with slotted(engine.loaded.model, layout):
            theirs = engine.loaded.model.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
                repetition_penalty=1.1, max_new_tokens=30, eos_token_id=None, pad_token_id=layout.pad,
            )  # fmt: skip
        assert ours == theirs[0, len(prompt) :].tolist() and len(ours) == 30


@pytest.mark.parametrize("form", FORMS)
def test_the_ids_are_those_of_the_plain_way(engines, layout, speak, form):
    """Batch, left padding, penalty, cache: every id equals the plain loop's, for a model in any form."""
    engine = engines[form]
    assert engine.decoder is (TransformersDecoder if form == "transformers" else LlamaDecoder)
    options = SamplingOptions(max_new_tokens=24)
    ours = speak(PROMPTS, [3, 4], engine=engine, max_new_tokens=24)
    with slotted(engine.loaded.model, layout):
        assert ours == old_engine.generate(engine.loaded.model, layout, PROMPTS, options, [3, 4])
    assert [len(row) for row in ours] == [24, 24] and ours[0] != ours[1]


@pytest.mark.parametrize("form", FORMS)
def test_hidden_states_equal_transformers_with_its_growing_cache(engines, form):
    """The static cache, with room to spare and padding, against DynamicCache: the logits of prompt and steps."""
    model = engines[form].loaded.model
    width = len(PROMPTS[0])
    ids, padding = torch.tensor([PROMPTS[0], [0, *PROMPTS[1]]]), torch.tensor([0, 1])
    with torch.inference_mode():
        own, theirs = LlamaDecoder(model, 2, 40), TransformersDecoder(model, 2, 40)
        for step in range(12):
            if step == 0:
                a, b = own.prefill(ids, padding), theirs.prefill(ids, padding)
            else:
                token, column = torch.tensor([300 + 5 * step, 270]), torch.tensor([width + step - 1])
                bound = width + step if step < 6 else 40  # exactly the columns there are, or some that are empty
                a, b = own.advance(token, column, bound), theirs.advance(token, column, bound)
            a, b = own.logits(a, None), theirs.logits(b, None)
            assert a.dtype == torch.float32 and a.shape == b.shape
            torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-4)


def test_a_few_rows_of_the_head_are_those_of_the_whole(engine, layout):
    model = engine.loaded.model
    hidden = torch.randn(2, model.config.hidden_size)
    rows = list(layout.continuations(0))
    whole = LlamaDecoder(model, 2, 8)
    with torch.inference_mode():
        few, all_ = whole.logits(hidden, rows), whole.logits(hidden, None)
        with slotted(model, layout) as head:  # not a plain matrix: computed whole, then selected
            head.step = 3
            other = LlamaDecoder(model, 2, 8).logits(hidden, rows)
    ids = [i for r in rows for i in r]
    assert len(ids) == 4097 and ids[-1] == layout.end_of_speech
    torch.testing.assert_close(few, all_[:, ids])
    torch.testing.assert_close(other, all_[:, ids])


def test_a_batch_with_left_padding_equals_single_rows(speak):
    both = speak(PROMPTS, [7, 8], max_new_tokens=21)
    for row, seed in ((0, 7), (1, 8)):
        assert speak([PROMPTS[row]], [seed], max_new_tokens=21)[0] == both[row]


def test_same_seed_same_ids_and_another_seed_others(speak):
    a, b, c = (speak([PROMPTS[0]], [s], max_new_tokens=14)[0] for s in (1, 1, 2))
    assert a == b and a != c


def test_a_row_does_not_depend_on_its_neighbours_seed(speak):
    a = speak(PROMPTS, [1, 5], max_new_tokens=14)
    b = speak(PROMPTS, [1, 6], max_new_tokens=14)
    assert a[0] == b[0] and a[1] != b[1]


def test_it_stops_after_the_first_id_that_is_not_legal(engine, layout, speak):
    ids = run(engine, [PROMPTS[0]], [0], max_new_tokens=50)[0]  # a random model: illegal almost at once
    assert all(layout.legal(t, i) for i, t in enumerate(ids[:-1])) and not layout.legal(ids[-1], len(ids) - 1)
    for row in speak(PROMPTS, [1, 2], end_after=14, max_new_tokens=50):
        assert len(row) == 15 and row[-1] == layout.end_of_speech  # stop id 128258's like, not 49158 or 128257


def test_the_caller_s_code_does_not_run_in_inference_mode(engine, layout):
    before = torch.backends.mkldnn.enabled
    with slotted(engine.loaded.model, layout):
        for _ in engine.stream([PROMPTS[0]], SamplingOptions(max_new_tokens=3), [0]):
            assert not torch.is_inference_mode_enabled() and torch.backends.mkldnn.enabled == before


def test_closing_the_iterator_stops_the_work(engine, layout):
    with slotted(engine.loaded.model, layout) as head:
        stream = engine.stream([PROMPTS[0]], SamplingOptions(max_new_tokens=30), [0])
        taken = [next(stream)[1] for _ in range(5)]
        stream.close()
        assert len(taken) == head.step == 5 and next(stream, None) is None


def test_a_text_that_does_not_fit_the_context_is_refused(engine):
    with pytest.raises(UserError, match=r"the prompt has 8 tokens and up to 16380 .* context of 16384"):
        next(engine.stream(PROMPTS, SamplingOptions(max_new_tokens=16380), [0, 1]))


# ---- a frame at a time ----


@pytest.fixture
def framewise(engine):
    """The same model, the host seeing ids a frame at a time, as on a GPU; steps are run, not recorded."""
    other = TorchEngine(engine.loaded)
    other.by_frame, other.record = True, lambda: None
    return other


@pytest.mark.parametrize("decoding", ["strict", "framed"])
@pytest.mark.parametrize("tokens", [1, 7, 20])
def test_a_frame_at_a_time_gives_the_same_ids(speak, framewise, decoding, tokens):
    options = dict(max_new_tokens=tokens, decoding=decoding)
    for _ in range(2):  # the second time with the buffers of the first
        assert speak(PROMPTS, [1, 2], engine=framewise, **options) == speak(PROMPTS, [1, 2], **options)
    assert len(framewise._idle) == 1


def test_a_frame_at_a_time_ends_each_row_by_itself(layout, speak, framewise):
    # Framed: a strict frame may be drawn twice, and this head counts its steps.
    for row in speak(PROMPTS, [1, 2], end_after=14, engine=framewise, max_new_tokens=50, decoding="framed"):
        assert len(row) == 15 and row[-1] == layout.end_of_speech


def test_short_lists_that_are_too_short_are_noticed_and_the_frame_is_drawn_again(speak, framewise):
    """Temperature 10 makes the nucleus wider than the list that a frame tries first."""
    options = dict(max_new_tokens=21, temperature=10.0, decoding="strict")
    assert speak(PROMPTS, [1, 2], engine=framewise, **options) == speak(PROMPTS, [1, 2], **options)
    (kept,) = framewise._idle.values()
    assert kept.count is None


def test_two_streams_at_once_do_not_share_their_buffers(engine, layout, framewise):
    def stream(seed):
        return framewise.stream([PROMPTS[0]], SamplingOptions(max_new_tokens=28, decoding="framed"), [seed])

    alone = [list(stream(seed)) for seed in (1, 2)]
    together = list(zip_longest(stream(1), stream(2)))
    assert [[item for item in part if item] for part in zip(*together, strict=True)] == alone


class Recorder:
    """Stands in for a CUDA graph: replays run the function again, on the same tensors."""

    def __init__(self, fails: bool = False) -> None:
        self.recorded, self.replayed, self.fails = 0, 0, fails

    def __call__(self, run):
        run()  # a graph's warm-up changes the state as well
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        self.recorded += 1

        def replay():
            self.replayed += 1
            run()

        return replay


def test_recorded_frames_give_the_same_ids_and_are_kept(speak, framewise, monkeypatch):
    for module in (frames, torch_engine):
        monkeypatch.setattr(module, "BOUND_STEP", 16)
    recorder = Recorder()
    framewise.record = lambda: recorder
    options = dict(max_new_tokens=30, decoding="framed")
    expected = speak(PROMPTS, [1, 2], **options)
    for times in (1, 2):
        assert speak(PROMPTS, [1, 2], engine=framewise, **options) == expected
        assert (recorder.recorded, recorder.replayed) == (3, 5 * times)  # 8 + 35 columns, 16 to a recording


def test_what_can_t_be_recorded_is_run_and_said(speak, framewise, caplog):
    framewise.record = lambda: Recorder(fails=True)
    options = dict(max_new_tokens=20, decoding="framed")
    with caplog.at_level(logging.WARNING):
        assert speak(PROMPTS, [1, 2], engine=framewise, **options) == speak(PROMPTS, [1, 2], **options)
    assert [r.message for r in caplog.records] == [
        "no CUDA graph, so speaking is slower: operation not permitted when stream is capturing"
    ]


def test_what_a_frame_s_state_refers_to_stays_in_place(engine):
    """A CUDA graph has the addresses in it: to begin anew must not move anything."""
    framewise = TorchEngine(engine.loaded)
    with torch.inference_mode():
        batch = framewise.batch(2, 64, SamplingOptions(decoding="framed"))
        batch.begin(PROMPTS, [1, 2], 64)
        runner = frames.Frames(batch, 64, None)

        def addresses():
            tensors = [*batch.state.values(), batch.decoder.cache, batch.decoder.padding, batch.seen.table]
            return [t.data_ptr() for t in tensors]

        before = addresses()
        runner.run(8)
        batch.begin(PROMPTS[::-1], [5, 6], 64)
        runner.run(8)
    assert addresses() == before


# ---- what is no plain Llama ----


def test_other_models_take_transformers_forward_pass(engine, layout, caplog):
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(vocab_size=layout.audio_end, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                           num_attention_heads=2, num_key_value_heads=1, head_dim=16)  # fmt: skip
    torch.manual_seed(0)
    other = dataclasses.replace(engine.loaded, model=MistralForCausalLM(config))
    with caplog.at_level(logging.INFO):
        mistral = TorchEngine(other)
    assert mistral.decoder is TransformersDecoder and "it is a MistralForCausalLM" in caplog.text
    ours = run(mistral, PROMPTS, [1, 2], max_new_tokens=14, decoding="framed")
    options = SamplingOptions(max_new_tokens=14, decoding="framed")
    assert ours == old_engine.generate(other.model, layout, PROMPTS, options, [1, 2])
    assert why_not_llama(engine.loaded.model) is None
    dynamic = build_base(layout)
    dynamic.model.rotary_emb.rope_type = "dynamic"
    assert "rotary embedding (dynamic) changes" in why_not_llama(dynamic)


def test_attention_bias_is_computed(layout, engine):
    model = build_base(layout, attention_bias=True, mlp_bias=True)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    biased = TorchEngine(dataclasses.replace(engine.loaded, model=model))
    assert biased.decoder is LlamaDecoder
    with slotted(model, layout):
        ours = run(biased, PROMPTS, [1, 2], max_new_tokens=14)
    with slotted(model, layout):
        assert ours == old_engine.generate(model, layout, PROMPTS, SamplingOptions(max_new_tokens=14), [1, 2])


def test_the_quick_product_is_as_exact():
    """One bfloat16 row: off by rounding alone, whichever kernel computes it; and the switch goes back."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(1, 512, generator=generator), torch.randn(300, 512, generator=generator)
    x, w = x.bfloat16(), w.bfloat16()
    exact = (x.double() @ w.double().T).bfloat16().double()
    before = torch.backends.mkldnn.enabled
    cpu = torch.device("cpu")
    with torch.inference_mode(), quick_products(cpu, torch.bfloat16, 1):
        with quick_products(cpu, torch.bfloat16, 1):  # as by another thread
            ours = torch.nn.functional.linear(x, w).double()
        changed = torch.backends.mkldnn.enabled != before
    assert changed == (before and torch.backends.cpu.get_cpu_capability() == "AVX512")
    assert torch.backends.mkldnn.enabled == before
    assert ((ours - exact).abs() <= exact.abs() * 2**-7 + 1e-3).all()
    for rows, dtype in ((2, torch.bfloat16), (1, torch.float32)):
        with quick_products(cpu, dtype, rows):
            assert torch.backends.mkldnn.enabled == before


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1])
def test_a_narrow_model_is_as_exact(engine, rows):
    """Its turned head and the one thread change rounding alone, and the threads are as before afterwards."""
    decoder = LlamaDecoder(engine.loaded.model, rows, 8)
    hidden = torch.randn(rows, decoder.embed.weight.shape[1])
    exact = hidden.double() @ decoder.head.weight.double().T
    before, some = torch.get_num_threads(), [range(7, 40), range(100, 101)]
    torch.set_num_threads(2)
    try:
        assert engine.narrow and decoder.turned is not None
        with engine.computing(rows):
            inside = torch.get_num_threads()
            whole, part = decoder.logits(hidden, None), decoder.logits(hidden, some)
        assert inside == (1 if rows <= FEW_ROWS else 2) and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(whole, exact.float())
    torch.testing.assert_close(part, torch.cat([exact[:, r.start : r.stop] for r in some], dim=1).float())


def test_equal_rows_of_a_head_are_multiplied_once():
    weight = torch.randn(5, 8)[[0, 0, 1, 2, 2, 2, 0, 3, 4]]
    head, hidden = TurnedHead(weight), torch.randn(3, 8)
    assert head.weight.shape == (8, 6)  # of equal rows, only neighbours
    for rows in (None, [range(1, 5)], [range(5, 9), range(1)]):
        exact = hidden @ (weight if rows is None else torch.cat([weight[r.start : r.stop] for r in rows])).T
        torch.testing.assert_close(head.logits(hidden, rows), exact)


@pytest.mark.parametrize("change", [{"bias": True}, {"in_features": NARROW + 1}, {"dtype": torch.bfloat16}])
def test_other_heads_stay_as_they_are(change):
    assert turned_head(torch.nn.Linear(**{"in_features": 8, "out_features": 9, "bias": False} | change)) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("in_4bit", [False, True])
def test_recorded_on_the_gpu(base_dir, caplog, in_4bit):
    """CUDA graphs give the ids of the same steps run as they are, and they can be recorded."""
    loaded = load_base(str(base_dir), load_in_4bit=in_4bit, backend="transformers", device="cuda")
    recorded, run_as_is, by_token = (TorchEngine(loaded) for _ in range(3))
    run_as_is.record, by_token.by_frame = lambda: None, False
    options = dict(max_new_tokens=35, decoding="framed")
    expected = run(by_token, PROMPTS, [1, 2], **options)
    assert recorded.by_frame and run(run_as_is, PROMPTS, [1, 2], **options) == expected
    for _ in range(2):
        assert run(recorded, PROMPTS, [1, 2], **options) == expected
    assert "no CUDA graph" not in caplog.text
