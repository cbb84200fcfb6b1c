"""Framed decoding: strict decoding conditioned on legality at each step, and never an illegal id."""

from __future__ import annotations

import pytest
import torch

from orpheus.config import SamplingOptions
from orpheus.engines.sampling import SeenIds
from orpheus.engines.torch.engine import TorchEngine
from orpheus.format.tokens import Stop
from orpheus.model.base import load_base
from tests.support import old_engine
from tests.support.voices import rows_of

PROMPTS = [[262, 256, 40, 41, 258, 263, 264, 260], [262, 256, 50, 258, 263, 264, 260]]


@pytest.fixture(scope="module")
def engine(base_dir):
    return TorchEngine(load_base(str(base_dir), load_in_4bit=False))


@pytest.mark.parametrize("slot", [0, 3])
@pytest.mark.parametrize("temperature, penalty", [(1.0, 1.0), (0.6, 1.3)])
def test_the_distribution_is_strict_s_given_that_the_id_is_legal(engine, layout, slot, temperature, penalty):
    """By enumeration, for every eighth legal id: the share of the uniform numbers that lead to it, within 4 %.

    From the strict scores of all ids follows P(id | legal), and where its interval of uniform numbers begins and ends;
    framed decoding must give that very id just inside of both ends. It holds at top_p 1.
    """
    prompt, spoken = PROMPTS[0], [int(layout.slot_range(s)[70 + s]) for s in range(slot)]
    legal = torch.tensor([i for ids in layout.continuations(slot) for i in ids])
    options = SamplingOptions(temperature=temperature, top_p=1, repetition_penalty=penalty, decoding="framed")
    rows, room = len(legal[::8]), len(prompt) + slot + 1

    with torch.inference_mode():
        batch = engine.batch(rows, room, options)
        batch.begin([prompt] * rows, range(rows), room)
        for position, token in enumerate(spoken):
            batch.state["token"].fill_(token)
            batch.seen.add(batch.state["token"], batch.state["column"])
            batch.advance(len(prompt) + position + 1)
        scores = batch.decoder.logits(batch.state["hidden"][:1], None)
        scores = SeenIds([prompt + spoken], room, "cpu", None).penalise(scores, penalty)
        every = torch.softmax(scores.double() / temperature, dim=-1)[0]
        assert every.argmax() not in legal and every[legal].sum() < 0.5  # strict would mostly draw illegal ids here
        conditional, order = (every[legal] / every[legal].sum()).sort(descending=True)
        end, expected = conditional.cumsum(0)[::8], legal[order][::8]
        before = batch.snapshot()
        for inside in (0.02, 0.98):
            batch.restore(before)
            batch.state["draws"][:, slot] = end - conditional[::8] * (1 - inside)
            drawn = batch.draw(slot)
            # Two ids that are equally likely but for rounding may stand in either order.
            torch.testing.assert_close(every[drawn], every[expected], rtol=1e-5, atol=0)
            assert (drawn == expected).float().mean() > 0.95


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(temperature=0.0),
        dict(temperature=1.0, top_p=1.0, repetition_penalty=1.0),
        dict(temperature=1.5, top_p=0.5, repetition_penalty=1.5),
        dict(temperature=0.3, top_p=0.02, repetition_penalty=0.7),
    ],
)
def test_it_is_the_plain_way_with_the_illegal_ids_masked(engine, layout, prompts, options):
    """The nucleus is taken from the legal ids' own probabilities: those of a softmax in which the others are -inf."""
    sampling = SamplingOptions(**options, max_new_tokens=30, decoding="framed")
    seeds = [11, 12][: len(prompts)]
    assert rows_of(engine, prompts, sampling, seeds) == old_engine.generate(
        engine.loaded.model, layout, prompts, sampling, seeds
    )


def test_no_illegal_id_is_drawn(engine, layout):
    """A random model, hot: strict breaks off almost at once, framed ends between frames or not at all."""
    sampling = SamplingOptions(temperature=3.0, top_p=1.0, max_new_tokens=35, decoding="framed")
    rows: list[list[int]] = [[] for _ in range(16)]
    for row, token in engine.stream([PROMPTS[0]] * 16, sampling, range(16)):
        rows[row].append(token)
    for ids in rows:
        stop = layout.unflatten(ids)[1]
        assert (stop.kind, stop.index) == (Stop.END_OF_IDS, 35) or (stop.kind, stop.index) == (
            Stop.END_OF_SPEECH,
            len(ids) - 1,
        )
        assert stop.dropped == 0
    strict = [token for _, token in engine.stream(PROMPTS[:1], SamplingOptions(temperature=3.0), [0])]
    assert len(strict) < 7 and not layout.legal(strict[-1], len(strict) - 1)


def test_where_top_p_makes_a_difference():
    """Half of the mass on an illegal id: strict's nucleus of 0.5 is that id alone, framed's holds half of the rest."""
    from orpheus.engines.sampling import sample

    probabilities = torch.tensor([[0.5, 0.2, 0.15, 0.1, 0.05]])  # the first is illegal
    options = SamplingOptions(temperature=1.0, top_p=0.5, repetition_penalty=1.0)
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    strict = sample(probabilities.log().repeat(1000, 1), options, grid)
    framed = 1 + sample(probabilities[:, 1:].log().repeat(1000, 1), options, grid)
    assert set(strict.tolist()) == {0} and set(framed.tolist()) == {1, 2}
