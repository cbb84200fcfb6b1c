"""The torch engine: exact sampling, left padding, one generator per row, stop rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orpheus.config import SamplingOptions
from orpheus.engines import torch_engine
from orpheus.engines.torch_engine import TorchEngine, sample
from orpheus.model import load_base


@pytest.fixture(scope="module")
def engine(base_dir):
    return TorchEngine(load_base(str(base_dir), load_in_4bit=False))


def teach_slots(inner, layout, end_after: int | None = None):
    """A forward whose logits favour each step's own slot, so that a random model stays legal for a while."""

    def forward(*args, **kwargs):
        out = inner(*args, **kwargs)
        step = kwargs["past_key_values"].get_seq_length() - forward.prompt
        legal = layout.slot_range(step % 7)
        out.logits[:, :, legal[0] : legal[-1] + 1] += 50
        if end_after is not None and step >= end_after:
            out.logits[:, :, layout.end_of_speech] += 200
        return out

    forward.prompt = 0
    return forward


PROMPTS = [[262, 256, 40, 41, 258, 263, 264, 260], [262, 256, 50, 258, 263, 264, 260]]


def run(engine, prompts, seeds, **options):
    rows = [[] for _ in prompts]
    for row, token in engine.stream(prompts, SamplingOptions(**options), seeds):
        rows[row].append(token)
    return rows


@pytest.fixture
def slotted(engine, layout, monkeypatch):
    original = engine.loaded.model.forward

    def use(prompts, end_after=None):
        forward = teach_slots(original, layout, end_after)
        forward.prompt = max(map(len, prompts))
        monkeypatch.setattr(engine.loaded.model, "forward", forward)

    return use


def test_greedy_equals_transformers_generate(engine, layout, slotted):
    """Same ids as `model.generate` with the same settings, through prompt, cache and penalty."""
    for prompt in PROMPTS:
        slotted([prompt])
        ours = run(engine, [prompt], [0], temperature=0, max_new_tokens=30)[0]
        theirs = engine.loaded.model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            repetition_penalty=1.1, max_new_tokens=30, eos_token_id=None, pad_token_id=layout.pad,
        )  # fmt: skip
        assert ours == theirs[0, len(prompt) :].tolist() and len(ours) == 30


def test_a_batch_with_left_padding_equals_single_rows(engine, slotted):
    slotted(PROMPTS)
    both = run(engine, PROMPTS, [7, 8], max_new_tokens=21)
    for row, seed in ((0, 7), (1, 8)):
        slotted([PROMPTS[row]])
        assert run(engine, [PROMPTS[row]], [seed], max_new_tokens=21)[0] == both[row]


def test_same_seed_same_ids_and_another_seed_others(engine, slotted):
    slotted([PROMPTS[0]])
    a, b, c = (run(engine, [PROMPTS[0]], [s], max_new_tokens=14)[0] for s in (1, 1, 2))
    assert a == b and a != c


def test_a_row_does_not_depend_on_its_neighbours_seed(engine, slotted):
    slotted(PROMPTS)
    a = run(engine, PROMPTS, [1, 5], max_new_tokens=14)
    b = run(engine, PROMPTS, [1, 6], max_new_tokens=14)
    assert a[0] == b[0] and a[1] != b[1]


def test_it_stops_after_the_first_id_that_is_not_legal(engine, layout, slotted):
    ids = run(engine, [PROMPTS[0]], [0], max_new_tokens=50)[0]  # a random model: illegal almost at once
    assert all(layout.legal(t, i) for i, t in enumerate(ids[:-1])) and not layout.legal(ids[-1], len(ids) - 1)
    slotted(PROMPTS, end_after=14)
    for row in run(engine, PROMPTS, [1, 2], max_new_tokens=50):
        assert len(row) == 15 and row[-1] == layout.end_of_speech  # stop id 128258's like, not 49158 or 128257


def test_the_caller_s_code_does_not_run_in_inference_mode(engine, slotted):
    slotted([PROMPTS[0]])
    for _ in engine.stream([PROMPTS[0]], SamplingOptions(max_new_tokens=3), [0]):
        assert not torch.is_inference_mode_enabled()


def reference(logits, seen, options):
    """The distribution by transformers' own processors. logits [V] -> probabilities [V]"""
    from transformers import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

    ids, scores = torch.tensor([seen]), logits[None].clone()
    if options.repetition_penalty != 1:
        scores = RepetitionPenaltyLogitsProcessor(options.repetition_penalty)(ids, scores)
    scores = TemperatureLogitsWarper(options.temperature)(ids, scores)
    if options.top_p < 1:
        scores = TopPLogitsWarper(options.top_p)(ids, scores)
    return scores.softmax(-1)[0]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.3, 0.6, 1.0, 2.0]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 0.95, 1.0]),
    penalty=st.sampled_from([1.0, 1.1, 1.5]),
    candidates=st.sampled_from([4, 1024]),
)
def test_sampling_has_transformers_distribution(seed, temperature, top_p, penalty, candidates):
    """Every id's share of a fine grid of draws is its probability; the short list falls back where it is too short."""
    options = SamplingOptions(temperature=temperature, top_p=top_p, repetition_penalty=penalty)
    generator = torch.Generator().manual_seed(seed)
    size, draws = 50, 4000
    logits = torch.randn(size, generator=generator) * 3
    seen_ids = torch.randint(size, (10,), generator=generator)
    seen = torch.zeros(1, size, dtype=torch.bool)
    seen[0, seen_ids] = True
    grid = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    old = torch_engine.NUCLEUS_CANDIDATES
    torch_engine.NUCLEUS_CANDIDATES = candidates
    try:
        drawn = sample(logits.expand(draws, -1), seen.expand(draws, -1), options, grid)
    finally:
        torch_engine.NUCLEUS_CANDIDATES = old
    share = torch.bincount(drawn, minlength=size) / draws
    expected = reference(logits, seen_ids.tolist(), options)
    # A tie at the border of the nucleus may fall either way; no other id may.
    assert np.abs(share - expected).max() < 2 / draws + 1e-3


def test_the_last_draw_stays_in_the_nucleus():
    logits = torch.tensor([[5.0, 4.0, 1.0, 0.0]])
    draw = torch.tensor([np.nextafter(1.0, 0.0)], dtype=torch.float64)
    options = SamplingOptions(temperature=1, top_p=0.9, repetition_penalty=1)
    assert sample(logits, torch.zeros(1, 4, dtype=torch.bool), options, draw).item() == 1
