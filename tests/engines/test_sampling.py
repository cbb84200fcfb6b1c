"""How one id is drawn: the same as the plain way, to the id, and transformers' distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orpheus.config import SamplingOptions
from orpheus.engines import sampling
from orpheus.engines.sampling import SeenIds, draw_index, sample, scale, uniforms
from orpheus.errors import UserError
from tests.support import old_engine

OPTIONS = st.builds(
    SamplingOptions,
    temperature=st.sampled_from([0.0, 0.3, 0.6, 1.0, 2.0]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 0.95, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.1, 1.5]),
)


@pytest.fixture
def candidates(monkeypatch):
    return lambda *counts: monkeypatch.setattr(sampling, "CANDIDATES", counts)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    options=OPTIONS,
    size=st.sampled_from([1, 2, 5, 50, 3000]),
    levels=st.sampled_from([0, 1, 3]),
    marks=st.booleans(),
)
def test_it_draws_what_the_plain_way_draws(seed, options, size, levels, marks):
    """For every row of a batch. With `levels`, most scores equal others, and any of the equal ones is right."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, size, generator=generator) * 4
    if levels:
        logits = (logits / 4 * levels).round()
    prompts = torch.randint(size, (3, 6), generator=generator).tolist()
    draws = torch.rand(3, 8, generator=generator, dtype=torch.float64)
    seen = SeenIds([p[: 6 - row] for row, p in enumerate(prompts)], 20, "cpu", size if marks else None)
    plain = torch.zeros(3, size, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        plain[row, prompt[: 6 - row]] = True
    for step in range(8):
        penalised = seen.penalise(logits.clone(), options.repetition_penalty, torch.arange(size))
        ours = sample(penalised.clone(), options, draws[:, step])
        theirs = old_engine.sample(logits, plain, options, draws[:, step])
        assert torch.equal(penalised.gather(1, ours[:, None]), penalised.gather(1, theirs[:, None]))
        if not levels:
            assert torch.equal(ours, theirs)
        seen.add(theirs, torch.tensor([6 + step]))
        plain.scatter_(1, theirs[:, None], True)


def test_a_list_that_is_too_short_is_replaced_by_a_longer_one(candidates):
    """The candidates are a guess: whatever they are, the id is the same."""
    logits = torch.randn(200, 400, generator=torch.Generator().manual_seed(0))
    options = SamplingOptions(temperature=1.0, top_p=0.9)
    draws = uniforms(1, 200)
    drawn = []
    for counts in ((), (1,), (2, 7), (399,), (128, 1024)):
        candidates(*counts)
        drawn.append(sample(logits.clone(), options, draws))
    assert all(torch.equal(drawn[0], other) for other in drawn[1:])
    probabilities = scale(logits.clone(), options)
    index, enough = draw_index(probabilities, 0.9, draws, 5)
    assert not enough.any() and not torch.equal(index, drawn[0])
    index, enough = draw_index(probabilities, 0.9, draws, 390)
    assert enough.all() and torch.equal(index, drawn[0])


def test_numbers_depend_on_the_seed_alone():
    assert torch.equal(uniforms(5, 1000)[:13], uniforms(5, 13)) and not torch.equal(uniforms(5, 13), uniforms(6, 13))


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
    counts=st.sampled_from([(4,), (128, 1024)]),
)
def test_sampling_has_transformers_distribution(seed, temperature, top_p, penalty, counts):
    """Every id's share of a fine grid of draws is its probability; the short list falls back where it is too short."""
    options = SamplingOptions(temperature=temperature, top_p=top_p, repetition_penalty=penalty)
    generator = torch.Generator().manual_seed(seed)
    size, draws = 50, 4000
    logits = torch.randn(size, generator=generator) * 3
    seen_ids = torch.randint(size, (10,), generator=generator).tolist()
    grid = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    old = sampling.CANDIDATES
    sampling.CANDIDATES = counts
    try:
        scores = SeenIds([seen_ids], 10, "cpu", None).penalise(logits[None].clone(), penalty)
        drawn = sample(scores.repeat(draws, 1), options, grid)
    finally:
        sampling.CANDIDATES = old
    share = torch.bincount(drawn, minlength=size) / draws
    expected = reference(logits, seen_ids, options)
    # A tie at the border of the nucleus may fall either way; no other id may.
    assert np.abs(share - expected).max() < 2 / draws + 1e-3


def test_the_last_draw_stays_in_the_nucleus():
    logits = torch.tensor([[5.0, 4.0, 1.0, 0.0]])
    draw = torch.tensor([np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert sample(logits, SamplingOptions(temperature=1, top_p=0.9, repetition_penalty=1), draw).item() == 1


def test_only_the_ids_in_the_list_are_touched():
    logits = torch.tensor([[2.0, -2.0, 3.0, 4.0]])
    seen = SeenIds([[0, 1, 0]], 8, "cpu", None)
    assert seen.penalise(logits.clone(), 2.0).tolist() == [[1.0, -4.0, 3.0, 4.0]]  # 0 is listed often, halved once
    seen.add(torch.tensor([3]), torch.tensor([3]))
    assert seen.penalise(logits.clone(), 2.0).tolist() == [[1.0, -4.0, 3.0, 2.0]]
    marked = SeenIds([[10, 12, 7]], 8, "cpu", 20)
    marked.add(torch.tensor([11]), torch.tensor([3]))
    assert marked.penalise(logits.clone(), 2.0, torch.tensor([10, 11, 12, 13])).tolist() == [[1.0, -4.0, 1.5, 4.0]]


def test_an_unknown_decoding_is_refused():
    with pytest.raises(UserError, match="decoding is 'loose', expected strict or framed"):
        SamplingOptions(decoding="loose")  # type: ignore[arg-type]


def test_what_a_row_draws_does_not_depend_on_its_neighbours():
    """Equal scores may stand in any order, but a neighbour whose nucleus is wide must not change that order."""
    options = SamplingOptions(temperature=1.0, top_p=0.9, repetition_penalty=1.0)
    scores = torch.zeros(3, 3000)  # the last row's nucleus is nearly all of them
    scores[0, torch.randperm(3000, generator=torch.Generator().manual_seed(0))[:60]] = 12.0  # within the first list
    scores[1, ::10] = 9.0  # three hundred, within the second
    for uniform in torch.rand(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)):
        alone = [int(sample(scores[i : i + 1].clone(), options, uniform[i : i + 1])[0]) for i in range(3)]
        assert sample(scores.clone(), options, uniform).tolist() == alone
