"""Speculative decoding, whatever the draft guesses, the distribution stays."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import speculative
from benchmarks.speculation import Grams, overlap
from orpheus.config import PRESETS, SamplingOptions, VoiceOptions
from orpheus.engines.sampling import sample
from orpheus.engines.torch.engine import TorchEngine
from orpheus.engines.torch.speculative import Cached, SpeculativeEngine, distribution, judge, marks, pick, speculate
from orpheus.errors import UserError
from orpheus.format.prompt import Renderer
from orpheus.model.base import four_bit_copy, load_base
from orpheus.speak.inference import load_voice
from tests.support.voices import rows_of

SAMPLING = SamplingOptions()
GRID = 24  # uniform numbers stand in the middle of as many intervals


@pytest.fixture(scope="module")
def embedded():
    """The embedded base, which is really trained, and a prompt for it."""
    loaded = load_base(PRESETS["tiny"].base, load_in_4bit=False)
    return loaded, Renderer(loaded.tokenizer, loaded.layout).prompt("Hello there.", "tara")


def chance(seen, expected) -> float:
    """How probable it is that counts [n] differ from the expected ones by as much (Pearson's chi-square test)."""
    seen, expected = (torch.as_tensor(values, dtype=torch.float64) for values in (seen, expected))
    statistic = ((seen - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(seen) - 1) / 2, dtype=torch.float64), statistic / 2))


# ---- the rule ----


@settings(deadline=None, max_examples=12)
@given(st.lists(st.integers(0, 6), min_size=4, max_size=4), st.lists(st.integers(0, 6), min_size=4, max_size=4))
def test_by_enumeration_the_first_id_is_distributed_as_p(p_weights, q_weights):
    """Over every guess and a grid of uniform numbers for judging and drawing: P(id) is p(id), whatever q is."""
    if not sum(p_weights) or not sum(q_weights):
        return
    p, q = (torch.tensor(w, dtype=torch.float64) / sum(w) for w in (p_weights, q_weights))
    grid = [(i + 0.5) / GRID for i in range(GRID)]
    found = torch.zeros(4, dtype=torch.float64)
    for guess in range(4):
        if q[guess]:
            for u, v in itertools.product(grid, grid):
                found[judge(torch.stack([p, p]), q[None], [guess], [u, v])[0]] += q[guess] / GRID**2
    torch.testing.assert_close(found, p, atol=2 / GRID, rtol=0)


def test_by_exact_arithmetic_a_block_of_two_is_distributed_as_p():
    """In fractions, with the product's acceptance rule written out: all pairs of ids, p depending on the first."""
    p1, q1 = [Fraction(1, 2), Fraction(1, 3), Fraction(1, 6)], [Fraction(1, 5), Fraction(1, 5), Fraction(3, 5)]
    p2 = [[Fraction(2, 3), Fraction(1, 3), Fraction(0)], [Fraction(1, 4), Fraction(1, 4), Fraction(1, 2)],
          [Fraction(0), Fraction(0), Fraction(1)]]  # fmt: skip
    q2 = [[Fraction(1, 3)] * 3, [Fraction(1), Fraction(0), Fraction(0)], [Fraction(1, 2), Fraction(1, 2), Fraction(0)]]

    def keeps(p, q, x):
        """How likely `judge` keeps x, from the rule's own decisions at the two sides of the threshold."""
        share = min(Fraction(1), p[x] / q[x])
        tensor = [torch.tensor([[float(value) for value in row]], dtype=torch.float64) for row in (p, q)]
        for uniform, kept in ((float(share) - 1e-9, True), (float(share) + 1e-9, False)):
            if 0 <= uniform < 1:
                assert (len(judge(tensor[0].repeat(2, 1), tensor[1], [x], [uniform, 0.5])) == 2) == kept
        return share

    def rest(p, q):
        left = [max(a - b, Fraction(0)) for a, b in zip(p, q, strict=True)]
        return [value / sum(left) for value in left] if sum(left) else left

    pairs: Counter[tuple[int, int]] = Counter()
    for x in range(3):
        kept = q1[x] * keeps(p1, q1, x)
        for y in (y for y in range(3) if q2[x][y]):
            again = kept * q2[x][y] * keeps(p2[x], q2[x], y)
            pairs[x, y] += again
            for z, share in enumerate(rest(p2[x], q2[x])):
                pairs[x, z] += (kept * q2[x][y] - again) * share
        for z, share in enumerate(rest(p1, q1)):  # the pass ends with z; the next begins with p after z
            for y in range(3):
                pairs[z, y] += (q1[x] - kept) * share * p2[z][y]
    assert all(pairs[x, y] == p1[x] * p2[x][y] for x in range(3) for y in range(3))


def test_many_draws_are_distributed_as_p():
    """Chi-square over 4,800 steps in blocks of three, p and q depending on the id before."""
    generator = torch.Generator().manual_seed(1)
    p, q = (torch.softmax(2 * torch.randn(6, 6, generator=generator, dtype=torch.float64), -1) for _ in range(2))

    class Table:
        def __init__(self, rows: torch.Tensor) -> None:
            self.rows = rows.log().float()

        def scores(self, ids: list[int], count: int) -> torch.Tensor:
            return self.rows[ids[len(ids) - count :]].clone()

    plain = SamplingOptions(temperature=1.0, top_p=1.0, repetition_penalty=1.0)
    counts: Counter[tuple[int, int]] = Counter()
    for seed in range(1200):
        passes = speculate(Table(p), Table(q), 6, [0], plain, 3, seed)
        ids = [0]
        while len(ids) < 9:
            ids += next(passes)
        counts.update((ids[place], ids[place + 1]) for place in (0, 2, 4, 6))
    for before in range(6):
        seen = torch.tensor([counts[before, after] for after in range(6)], dtype=torch.float64)
        assert chance(seen, seen.sum() * p[before]) > 1e-3


def test_a_draft_that_agrees_is_always_kept_and_one_that_errs_never():
    p = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.9, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    assert judge(p, p[:2], [0, 1], [0.999, 0.999, 0.5]) == [0, 1, 2]
    assert judge(p, p.flip(0)[:2], [2, 1], [0.0, 0.0, 0.6]) == [1]
    assert overlap(p, p).tolist() == [1, 1, 1] and float(overlap(p, p.flip(0))[0]) == 0
    assert pick(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), 0.999999) == 1


# ---- with models ----


def test_the_distribution_is_what_strict_decoding_draws_from(embedded):
    """The ids that `sample` gives on a grid of uniform numbers fall as `distribution` says."""
    loaded, prompt = embedded
    scores = Cached(loaded, 64).scores(prompt, 1)
    seen = marks(prompt, scores.shape[-1], 1)
    p = distribution(scores.clone(), seen, SAMPLING)[0]
    grid = (torch.arange(500, dtype=torch.float64) + 0.5) / 500
    penalised = torch.where(seen, torch.where(scores < 0, scores * 1.1, scores / 1.1), scores)
    drawn = sample(penalised.repeat(500, 1), SAMPLING, grid)
    shares = torch.bincount(drawn, minlength=len(p)) / 500
    assert (shares - p).abs().max() <= 1 / 500 + 1e-9 and float(p.sum()) == pytest.approx(1)


def test_feeding_several_ids_gives_the_scores_of_one_at_a_time(embedded):
    loaded, prompt = embedded
    ids = [*prompt, *(loaded.layout.slot_range(i % 7)[9 * i] for i in range(12))]
    one, many = Cached(loaded, 128), Cached(loaded, 128)
    single = torch.cat([one.scores(ids[: len(ids) - back], 1) for back in range(11, -1, -1)])
    many.scores([*ids[:-5], 3, 4, 5], 3)  # guesses that were not kept are fed over
    torch.testing.assert_close(many.scores(ids, 12), single, atol=2e-4, rtol=1e-4)
    with torch.inference_mode():
        expected = loaded.model(torch.tensor([ids])).logits[0, -12:].float()
    torch.testing.assert_close(single, expected, atol=2e-3, rtol=1e-3)
    framed = Cached(loaded, 128, framed=True).scores(ids, 8)
    for row, place in enumerate(range(5, 13)):
        legal = [i for r in loaded.layout.continuations(place % 7) for i in r]
        torch.testing.assert_close(framed[row, legal], single[row + 4, legal], atol=2e-4, rtol=1e-4)
        assert framed[row].isfinite().sum() == len(legal)


def test_on_the_embedded_base_the_first_ids_are_those_of_strict_decoding(embedded):
    """Pairs of first ids, by a draft that is often wrong, and strict's own, against their exact probabilities."""
    loaded, _ = embedded
    model, draft = Cached(loaded, 128), Cached(loaded, 128, layers=4, framed=True)
    vocabulary = len(loaded.model.lm_head.weight)
    hot = SamplingOptions(temperature=1.5, max_new_tokens=2)

    def after(ids, cached=model):
        return distribution(cached.scores(ids, 1), marks(ids, vocabulary, 1), hot)[0]

    def undecided(ids) -> bool:
        """There is something to choose, and the draft is neither right nor wrong for certain."""
        own, guessed = after(ids), after(ids, draft)
        return float(own.topk(2).values[1]) > 0.1 and 0.1 < float(overlap(own, guessed)) < 0.9

    def beginnings(text) -> Iterator[list[int]]:
        """The prompt and the likeliest first frames of somebody's utterance."""
        start = Renderer(loaded.tokenizer, loaded.layout).prompt(text, None)
        best = SamplingOptions(temperature=0, max_new_tokens=70)
        spoken = [token for _, token in TorchEngine(loaded).stream([start], best, [0])]
        yield from ([*start, *spoken[:n]] for n in range(7, len(spoken), 7))

    texts = ("Why?", "Good morning.", "Yes, I see.", "Nine.", "One two three.")
    prompt = next(ids for text in texts for ids in beginnings(text) if undecided(ids))
    draws, pairs, kept = 240, Counter(), 0
    for seed in range(draws):
        passes = speculate(model, draft, vocabulary, prompt, hot, 2, seed)
        ids = next(passes)
        kept += len(ids) - 1
        while len(ids) < 2:
            ids = [*ids, *next(passes)]
        pairs[tuple(ids[:2])] += 1
    assert 0 < kept < 2 * draws

    first = after(prompt)
    exact = {(int(x), int(y)): float(first[x] * second[y]) for x in first.topk(8).indices
             for second in [after([*prompt, int(x)])] for y in second.topk(8).indices}  # fmt: skip
    strict: Counter[tuple[int, int]] = Counter()
    for start in range(0, draws, 80):
        rows: list[list[int]] = [[] for _ in range(80)]
        for row, token in TorchEngine(loaded).stream([prompt] * 80, hot, range(start, start + 80)):
            rows[row].append(token)
        strict.update(tuple((row * 2)[:2]) for row in rows)
    likely = [pair for pair, share in exact.items() if share * draws >= 5]
    assert len(likely) >= 2
    expected = [exact[pair] * draws for pair in likely]
    for counted in (pairs, strict):
        seen = [counted[pair] for pair in likely]
        assert chance([*seen, draws - sum(seen)], [*expected, draws - sum(expected)]) > 1e-3


# ---- the engine ----


@pytest.fixture(scope="module")
def drafted(embedded):
    """The embedded base in 32 bit, with a 4-bit copy as its draft."""
    loaded, _ = embedded
    return SpeculativeEngine(TorchEngine(loaded), four_bit_copy(loaded))


def test_the_copy_shares_what_is_not_quantised_and_leaves_the_model_alone(embedded, drafted):
    loaded, prompt = embedded
    model, copied = loaded.model, drafted.draft.model
    assert drafted.draft.in_4bit and not loaded.in_4bit
    for name in ("model.embed_tokens", "lm_head", "model.norm", "model.layers.0.input_layernorm"):
        assert copied.get_submodule(name).weight.data_ptr() == model.get_submodule(name).weight.data_ptr()
    small, large = (m.model.layers[1].mlp.up_proj.weight for m in (copied, model))
    assert (small.dtype, large.dtype) == (torch.uint8, torch.float32) and small.numel() * 2 == large.numel()
    with torch.inference_mode():
        ours, theirs = (m(torch.tensor([prompt])).logits[0, -1] for m in (copied, model))
    assert 0 < (ours - theirs).std() < 0.2 * theirs.std()


def test_without_chance_the_ids_are_the_engine_s_own(embedded, drafted):
    _, prompt = embedded
    greedy = SamplingOptions(temperature=0, max_new_tokens=150)
    own = rows_of(drafted.engine, [prompt], greedy, [0])
    assert rows_of(drafted, [prompt], greedy, [0]) == own and len(own[0]) > 70


def test_a_row_ends_where_it_should_and_a_seed_gives_the_same_again(embedded, drafted):
    loaded, _ = embedded
    prompt = Renderer(loaded.tokenizer, loaded.layout).prompt("Hello there.", None)  # who speaks is left to the seed
    first, same, other = (
        rows_of(drafted, [prompt], SamplingOptions(temperature=1.2, max_new_tokens=400), [seed])[0]
        for seed in (3, 3, 4)
    )
    assert first == same != other
    legal = [loaded.layout.legal(token_id, place) for place, token_id in enumerate(first)]
    assert all(legal[:-1]) and first[-1] == loaded.layout.end_of_speech
    for most in (1, 5, 12):  # also in the middle of a block
        assert rows_of(drafted, [prompt], SamplingOptions(temperature=1.2, max_new_tokens=most), [3])[0] == first[:most]


def test_what_it_does_not_do_better_is_left_to_the_engine(embedded, drafted):
    _, prompt = embedded
    for prompts, sampling in (
        ([prompt] * 2, SamplingOptions(max_new_tokens=9)),
        ([prompt], SamplingOptions(max_new_tokens=9, decoding="framed")),
    ):
        seeds = range(len(prompts))
        assert rows_of(drafted, prompts, sampling, seeds) == rows_of(drafted.engine, prompts, sampling, seeds)
    with pytest.raises(UserError, match="more than the model's context"):
        rows_of(drafted, [prompt], SamplingOptions(max_new_tokens=10**6), [0])


def test_a_voice_with_a_draft_speaks(caplog):
    tts = load_voice(VoiceOptions(adapter=None, preset="tiny", draft="4bit"))
    speech = tts.generate("The cat likes the garden.", voice="tara", seed=1)[0]
    assert speech.finish_reason == "end_of_speech" and speech.duration_s > 0.5
    assert speech.provenance["model"]["draft"] == "4bit" and "cost more than it saves" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(load_in_4bit="yes"), "4-bit itself"),
        (dict(engine="llamacpp", base="a.gguf"), "built for the engine torch, not for llamacpp"),
    ],
)
def test_where_a_draft_can_not_be_it_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        load_voice(VoiceOptions(**{"adapter": None, "preset": "tiny", "draft": "4bit", **options}))


# ---- the drafts that lost ----


def test_n_grams_are_counted_by_slot_and_follow_the_speech(layout):
    speech = [int(layout.slot_range(i % 7)[(i // 7) % 2]) for i in range(28)]
    start, size = layout.start_of_speech, layout.audio_end
    own = Grams(layout, size, (0, 1))
    first = own.scores([5, start], 1)[0]
    assert first.isfinite().nonzero()[:, 0].tolist() == list(layout.slot_range(0))  # nothing is known yet
    whole = own.scores([5, start, *speech], 2).exp()
    # After 28 ids slot 0 has had two ids, twice each; after the last id came always the first of them.
    assert whole[1].nonzero()[:, 0].tolist() == [layout.slot_range(0)[0], layout.slot_range(0)[1]]
    assert whole[1, layout.slot_range(0)[0]] == pytest.approx(1.5) and whole[1].sum() == pytest.approx(2)
    torch.testing.assert_close(own.scores([5, start, *speech[:9]], 1),
                               Grams(layout, size, (0, 1)).scores([5, start, *speech[:9]], 1))  # fmt: skip
    corpus = Grams(layout, size, (0, 1), [speech])
    assert corpus.scores([start], 1)[0].exp().nonzero()[:, 0].tolist() == [layout.slot_range(0)[0],
                                                                            layout.slot_range(0)[1]]  # fmt: skip


# ---- the benchmark ----


def test_ids_per_pass_by_hand():
    share = torch.tensor([0.5, 0.5, 1.0])
    assert speculative.per_pass([share], 1) == pytest.approx(1 + 0.5)  # the places with a whole block after them
    assert speculative.per_pass([share], 2) == pytest.approx(1 + 0.5 + 0.25)


def test_impossible_options_are_refused():
    with pytest.raises(UserError, match="1 or more"):
        speculative.Options(rounds=0)
