"""The base speaks before it is trained: what `--replay` mixes in (`orpheus/data/replay.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orpheus.config import SamplingOptions, SftOptions, as_dict
from orpheus.data.replay import Line, Replay, Speak, Spoken, cache_folder, lines_of, make_replay
from orpheus.format.tokens import Codes, FrameStream
from orpheus.model.base import free_memory
from orpheus.model.hub import local_folder
from orpheus.model.pairs import known_of
from orpheus.model.provenance import own_sampling, own_words
from orpheus.processes import is_main, wait_for_all

if TYPE_CHECKING:
    from orpheus.codec.snac import SnacCodec
    from orpheus.format.prompt import Renderer
    from orpheus.model.base import LoadedModel


def replay_lines(options: SftOptions, base: str) -> list[Line]:
    """What the base would speak. UserError, by the small files alone, if its voices or tags are not known."""
    words = own_words(local_folder(base, "base model"))
    return lines_of(base, known_of(base), words, options.train.replay, options.train.seed)


def speak_replay(options: SftOptions, model: LoadedModel, codec: SnacCodec, renderer: Renderer) -> Replay:
    """Let the base speak, before it has an adapter. Of several processes the first one speaks, the others wait."""
    lines = replay_lines(options, str(options.model.base))
    sampling = SamplingOptions().over(own_sampling(local_folder(str(options.model.base), "base model")))
    seed = options.train.seed
    identity = {"base": model.fingerprint, "revision": model.revision, "in_4bit": model.in_4bit,
                "layout": vars(model.layout), "codec": codec.identity, "sampling": as_dict(sampling),
                "seed": seed}  # fmt: skip
    folder = cache_folder(options.corpus.cache_dir, identity)

    def make() -> Replay:
        return make_replay(lines, speaker(model, renderer, sampling), model.layout, folder,
                           samples_per_frame=codec.samples_per_frame, seed=seed, progress=is_main())  # fmt: skip

    if is_main():
        made = make()
    wait_for_all()
    return made if is_main() else make()


def speaker(model: LoadedModel, renderer: Renderer, sampling: SamplingOptions) -> Speak:
    """What speaks lines with a model as it is: ids alone, no sound."""
    from orpheus.engines.torch.engine import TorchEngine

    def speak(lines: Sequence[Line], seeds: Sequence[int]) -> list[Spoken]:
        engine = TorchEngine(model)
        rows = [FrameStream(model.layout) for _ in lines]
        codes: list[list[Codes]] = [[] for _ in lines]
        prompts = [renderer.prompt(line.text, line.voice) for line in lines]
        for row, token_id in engine.stream(prompts, sampling, seeds):
            if (frame := rows[row].push(token_id)) is not None:
                codes[row].append(frame)
        engine.close()
        free_memory()
        return [(Codes.concatenate(c), stream.finish()) for c, stream in zip(codes, rows, strict=True)]

    return speak
