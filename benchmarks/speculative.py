"""Whether speculative decoding pays: how many guessed ids would be kept, what guessing costs, what it gives in all.

    python benchmarks/speculative.py                          # the embedded base, which is really trained
    python benchmarks/speculative.py --size mid               # its guesses at the costs of 4 layers of the real width
    python benchmarks/speculative.py --base my_base --size orpheus-3b --device cuda

Drafts: a 4-bit copy of the model; the model without its last layers; what followed the same ids earlier in the row's
own speech (prompt lookup), or in a corpus. How many ids are kept is exact: the sum of min(p, q) at each place of
utterances drawn strictly, with p and q both after penalty, temperature and top-p. From it and from measured costs
follows what a block of 1 to 6 guesses would give; then the loop really runs with the best block. With `--size mid`,
whose weights are random, a coin that falls as often decides what is kept. On a CPU a cost is processor seconds, on a
GPU the clock.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import LAYERS, Size, in_turns, model_of, seconds, show
from orpheus.cli import run
from orpheus.config import DEFAULT_PROMPTS, PRESETS, SamplingOptions
from orpheus.errors import UserError
from orpheus.format.tokens import FRAME_SLOTS
from orpheus.model.base import pick_device

PLACES = 8 * FRAME_SLOTS  # whose distributions over all ids are held at once
PUBLISHED = {"layers": 28, "layer_bytes": 201e6, "head_bytes": 964e6}
"""Orpheus-3B in 16 bit: what a step reads. Where bytes alone count, judging some ids costs what one step does."""


@dataclass(frozen=True)
class Options:
    """Measure speculative decoding with several drafts."""

    size: Size = "tiny"
    """The model whose costs are measured. mid, orpheus-3b: random weights of the real width, 4 or 28 layers."""
    base: str | None = None
    """The trained base whose ids are guessed: a hub id or a folder. Default: the embedded one."""
    voice: str | None = "tara"
    """Voice of the utterances; 'None' for a base without voices."""
    corpus: str = "data/corpus"
    """Recordings that n-grams are counted in, encoded by the embedded codec; '' leaves that draft out."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    utterances: int = 4
    """Utterances that are drawn."""
    tokens: int = 280
    """Tokens of each, at most."""
    blocks: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    """How many ids are guessed at a time."""
    rounds: int = 3
    """Turns of each contender; the best counts."""
    save: bool = False
    """Write the figures to benchmarks/results/speculative_SIZE.json as well."""

    def __post_init__(self) -> None:
        if min(self.utterances, self.rounds, *self.blocks) < 1 or self.tokens < 2 * FRAME_SLOTS:
            raise UserError(f"utterances, rounds and blocks are 1 or more, tokens {2 * FRAME_SLOTS} or more")


@dataclass
class Draft:
    """A way to guess, and the part of the model's bytes that a guess reads at the published size."""

    name: str
    source: Any
    share: float


def drafts(loaded: Any, in_4bit: Any, room: int, corpus: Sequence[list[int]]) -> list[Draft]:
    """All drafts for one model. in_4bit: the same model quantised."""
    from benchmarks.speculation import Grams
    from orpheus.engines.torch.speculative import Cached

    layers = len(loaded.model.model.layers)
    vocabulary = len(loaded.model.lm_head.weight)
    whole = PUBLISHED["layers"] * PUBLISHED["layer_bytes"] + PUBLISHED["head_bytes"]

    def share(kept: float) -> float:  # a guess needs no more of the head than the slot's rows: a fortieth
        return kept * PUBLISHED["layers"] * PUBLISHED["layer_bytes"] / whole

    found = [Draft("4-bit copy", Cached(in_4bit, room, framed=True), share(0.25))]
    for kept in sorted({layers - 1, layers // 2, 1} - {0, layers}, reverse=True):
        found.append(Draft(f"{kept} of {layers} layers", Cached(loaded, room, kept, framed=True), share(kept / layers)))
    found.append(Draft("own speech, 2-grams", Grams(loaded.layout, vocabulary, (0, 1)), 0.0))
    found.append(Draft("own speech, 3-grams", Grams(loaded.layout, vocabulary, (0, 1, 2)), 0.0))
    if corpus:
        found.append(Draft("corpus, 3-grams", Grams(loaded.layout, vocabulary, (0, 1, 2), corpus), 0.0))
    return found


def speech_of(corpus: str, tokenizer: Any, layout: Any) -> list[list[int]]:
    """The ids of a corpus's speech, encoded by the embedded codec."""
    from orpheus.codec.snac import SnacCodec
    from orpheus.config import CorpusOptions
    from orpheus.data.corpus import prepare
    from orpheus.format.prompt import Renderer

    if not corpus:
        return []
    codec = SnacCodec.load(PRESETS["tiny"].codec)
    options = CorpusOptions(dataset=corpus, validation_share=0.0)
    made = prepare(options, codec, Renderer(tokenizer, layout), max_seq_length=10**6, seed=0, progress=False)
    return [ids[ids.index(layout.start_of_speech) + 1 : -1] for ids in made.train["input_ids"]]


def utterances(loaded: Any, options: Options, sampling: SamplingOptions) -> list[tuple[list[int], int]]:
    """Utterances drawn strictly, prompts included, and how long their prompts are."""
    from orpheus.engines.torch.engine import TorchEngine
    from orpheus.format.prompt import Renderer

    renderer = Renderer(loaded.tokenizer, loaded.layout)
    texts = [DEFAULT_PROMPTS[i % len(DEFAULT_PROMPTS)] for i in range(options.utterances)]
    prompts = [renderer.prompt(text, options.voice) for text in texts]
    rows = [list(prompt) for prompt in prompts]
    for row, token in TorchEngine(loaded).stream(prompts, sampling, range(len(rows))):
        rows[row].append(token)
    return [(ids, len(prompt)) for ids, prompt in zip(rows, prompts, strict=True)]


def kept(model: Any, draft: Any, ids: list[int], prompt: int, sampling: SamplingOptions) -> tuple[Any, Any]:
    """At each place of the speech: the probability that a guess is kept, and the entropy of p in bits. [T] both."""
    import torch

    from benchmarks.speculation import overlap
    from orpheus.engines.torch.speculative import distribution, marks

    shares, entropies = [], []
    for start in range(prompt, len(ids), PLACES):
        end = min(start + PLACES, len(ids))
        before = ids[: end - 1]  # what is known when the last of these places is drawn
        scores = [source.scores(before, end - start) for source in (model, draft)]
        seen = marks(before, scores[0].shape[-1], end - start)
        p, q = (distribution(score, seen, sampling) for score in scores)
        shares.append(overlap(p, q))
        entropies.append(-(p * p.clamp(min=1e-300).log2()).sum(-1))
    return torch.cat(shares), torch.cat(entropies)


def per_pass(shares: Sequence[Any], block: int) -> float:
    """Ids that a pass with `block` guesses brings: 1, and 1 more for each guess if it and those before it are kept.

    The mean over all places of the utterances, as if the guesses after a kept one were as good as on its own path.
    """
    total, places = 0.0, 0
    for share in shares:
        for start in range(max(1, len(share) - block)):
            run = share[start : start + block].cumprod(0)
            total, places = total + 1 + float(run.sum()), places + 1
    return total / places


def costs(model: Any, ways: Sequence[Draft], options: Options, loaded: Any, prompt: list[int]) -> tuple[Any, Any, Any]:
    """Seconds of a strict step, of a pass over 2, 3, ... ids with their distributions, and of a guess of each draft."""
    from orpheus.engines.torch.speculative import distribution, marks

    vocabulary, steps = len(loaded.model.lm_head.weight), 3 * FRAME_SLOTS
    most = steps * (max(options.blocks) + 1)
    spoken = [loaded.layout.slot_range(i % FRAME_SLOTS)[17 * i % loaded.layout.slot_size] for i in range(most)]
    sampling = SamplingOptions()

    def passes(source: Any, count: int) -> None:
        ids = list(prompt)
        for step in range(steps):
            ids += spoken[step * count : (step + 1) * count]
            distribution(source.scores(ids, count), marks(ids, vocabulary, count), sampling)

    contenders: dict[str, Callable[[], None]] = {"step": partial(strictly, loaded, prompt, steps)}
    contenders |= {f"judge {block}": partial(passes, model, block + 1) for block in options.blocks}
    contenders |= {way.name: partial(passes, way.source, 1) for way in ways}
    spans = in_turns(contenders, options.rounds, loaded.device)
    spent = {name: seconds(span, loaded.device) / steps for name, span in spans.items()}
    return (spent["step"], {block: spent[f"judge {block}"] for block in options.blocks},
            {way.name: spent[way.name] for way in ways})  # fmt: skip


def measured(model: Any, ways: Sequence[Draft], blocks: Sequence[int], options: Options, loaded: Any,
             prompt: list[int], shares: Sequence[float] | None = None) -> list[float]:  # fmt: skip
    """How many times as fast as strict decoding the loop really is, with each draft and the block given for it.

    shares: keep a guess with this probability for each draft, not by the rule: for the costs of a model that is not
    trained, with the guesses of one that is.
    """
    from orpheus.engines.torch.speculative import judge, pick, speculate

    sampling = SamplingOptions(max_new_tokens=options.tokens)
    vocabulary = len(loaded.model.lm_head.weight)
    counts: dict[str, int] = {}

    def guessing(number: int) -> None:
        def by_chance(p: Any, q: Any, drafted: Sequence[int], uniforms: Sequence[float]) -> list[int]:
            assert shares is not None
            same = next((i for i, u in enumerate(uniforms[:-1]) if u >= shares[number]), len(drafted))
            return [*drafted[:same], pick(p[same], uniforms[-1])]

        way, made = ways[number], 0
        rule = judge if shares is None else by_chance
        for fresh in speculate(model, way.source, vocabulary, prompt, sampling, blocks[number], 0, rule):
            made += len(fresh)
            if made >= options.tokens:
                break
        counts[way.name] = made

    counts["strict"] = options.tokens
    contenders = {"strict": partial(strictly, loaded, prompt, options.tokens)}
    contenders |= {way.name: partial(guessing, number) for number, way in enumerate(ways)}
    spans = in_turns(contenders, options.rounds, loaded.device)
    rates = {name: counts[name] / seconds(span, loaded.device) for name, span in spans.items()}
    return [rates[way.name] / rates["strict"] for way in ways]


def strictly(loaded: Any, prompt: list[int], steps: int) -> None:
    """What the engine does for a row, strict, for so many steps; also past an illegal id, which random weights draw."""
    from orpheus.engines.torch.engine import TorchEngine

    engine, room = TorchEngine(loaded), len(prompt) + steps
    with engine.computing(1):
        batch = engine.batch(1, room, SamplingOptions())
        batch.begin([prompt], [0], room)
        for step in range(steps):
            batch.draw(step % FRAME_SLOTS).tolist()
            batch.advance(len(prompt) + step + 1)


def main(options: Options) -> None:
    """Measure and show."""
    import torch

    from orpheus.engines.torch.speculative import Cached
    from orpheus.format.prompt import Renderer
    from orpheus.model.base import load_base, pack_for_inference

    device = pick_device(options.device)

    def load(base: str, in_4bit: bool, dtype: Any = None) -> Any:
        loaded = load_base(base, load_in_4bit=in_4bit, backend="transformers", device=device, dtype=dtype)
        pack_for_inference(loaded)
        return loaded

    sampling = SamplingOptions(max_new_tokens=options.tokens)
    base = options.base or model_of("tiny", "base")
    loaded = load(base, False)
    room = max(512, 8 * options.tokens)
    corpus = speech_of(options.corpus, loaded.tokenizer, loaded.layout)
    model, ways = Cached(loaded, room), drafts(loaded, load(base, True), room, corpus)
    drawn = utterances(loaded, options, sampling)
    found = {way.name: [kept(model, way.source, *one, sampling) for one in drawn] for way in ways}
    entropy = _by_slot([entropies for _, entropies in found[ways[0].name]])
    prompt = Renderer(loaded.tokenizer, loaded.layout).prompt(DEFAULT_PROMPTS[1], options.voice)
    timed, timed_ways, timed_model, timed_prompt = loaded, ways, model, prompt
    if options.size != "tiny":
        dtype = torch.bfloat16 if options.size in LAYERS else None
        timed = load(model_of(options.size, "base"), False, dtype)
        timed_ways = drafts(timed, load(model_of(options.size, "base"), True, dtype), room, ())
        timed_model, timed_prompt = (
            Cached(timed, room),
            Renderer(timed.tokenizer, timed.layout).prompt(DEFAULT_PROMPTS[1]),
        )
    step, judging, guess = costs(timed_model, timed_ways, options, timed, timed_prompt)
    rows: list[dict[str, Any]] = []
    best: list[int] = []
    for number, way in enumerate(ways):
        shares = [share for share, _ in found[way.name]]
        cost = guess[timed_ways[min(number, len(timed_ways) - 1)].name]  # of the same kind; n-grams all cost alike
        ids = {block: per_pass(shares, block) for block in options.blocks}
        speed = {block: ids[block] * step / (block * cost + judging[block]) for block in options.blocks}
        by_bytes = {block: ids[block] / (block * way.share + 1) for block in options.blocks}
        best.append(max(speed, key=lambda block: speed[block]))
        rows.append({
            "draft": way.name, "kept": round(float(torch.cat(shares).mean()), 3),
            "by slot": " ".join(f"{value:.2f}" for value in _by_slot(shares)), "guess / step": round(cost / step, 3),
            "expected, blocks of " + " ".join(map(str, options.blocks)): _listed(speed),
            "by bytes": _listed(by_bytes), "best block": best[-1],
        })  # fmt: skip
    really = measured(timed_model, timed_ways, best, options, timed, timed_prompt,
                      None if timed is loaded else [row["kept"] for row in rows])  # fmt: skip
    for row, value in zip(rows, [*really, *[None] * len(rows)], strict=False):
        row["measured"] = value and round(value, 2)
    show("speculative", options.size, {
        "greatest_speedup": round(max(really), 2), "chance_instead_of_rule": timed is not loaded,
        "step_ms": round(1000 * step, 2), "judging_of_a_step": {b: round(s / step, 2) for b, s in judging.items()},
        "entropy_bits_by_slot": [round(value, 2) for value in entropy], "places": sum(len(i) - n for i, n in drawn),
        "device": str(loaded.device), "threads": torch.get_num_threads(),
        "speed_by": "clock" if loaded.device.type == "cuda" else "processor seconds",
    }, rows, options.save)  # fmt: skip


def _by_slot(values: Sequence[Any]) -> list[float]:
    """The means of some utterances' values [T] in each slot."""
    import torch

    return [float(torch.cat([value[slot::FRAME_SLOTS] for value in values]).mean()) for slot in range(FRAME_SLOTS)]


def _listed(values: dict[int, float]) -> str:
    return " ".join(f"{value:.2f}" for value in values.values())


if __name__ == "__main__":
    run(main, Options, __doc__)
