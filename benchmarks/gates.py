"""Do the gates tell a good voice from faulty ones, and is the best by gates better than the best by loss?

    python benchmarks/gates.py --variants trained shuffled --save

The embedded recordings are trained on as they are, and with one fault each: the texts shuffled among the clips
(`shuffled`), the clips cut off (`cut`) and their end tokens with them (`endless`), half a second of digital zeros in
every pause and at the end (`zeros`; their own pauses are short, and zeros already); `untrained` is the fresh adapter.
Each training is heard by the same gates, whose limits come from the faultless recordings. Where gates and validation
loss would keep different adapters, both are heard once more, with other seeds: no choice was made by those.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.common import show
from orpheus.audio.recordings import LEVEL_BLOCK, SAMPLE_RATE_HZ
from orpheus.cli import run
from orpheus.config import CorpusOptions, SftOptions, filled
from orpheus.data.corpus import Corpus, prepare
from orpheus.data.usual import SILENCE_DB
from orpheus.format.prompt import Renderer
from orpheus.format.tokens import FRAME_SLOTS
from orpheus.tools.train import adapt, encode, load_model, provenance, settle
from orpheus.training.choosing import PREFIX, losses

OTHER_SEED = 5000
CUT = 0.6  # of a clip that is left
ZEROS_S = 0.5
VARIANTS = ("untrained", "trained", "shuffled", "cut", "endless", "zeros")


@dataclass(frozen=True)
class Options:
    """Train the embedded voice with and without faults, heard by the gates."""

    variants: tuple[str, ...] = VARIANTS
    """Which voices: untrained, trained, shuffled, cut, endless, zeros."""
    steps: int = 52
    """Steps of each training."""
    every: int = 13
    """Steps between gates."""
    save: bool = False
    """Write benchmarks/results/gates_tiny.json."""


def shuffled(corpus: Corpus, renderer: Renderer) -> tuple[Any, Any]:
    """Every clip with another's text."""
    from datasets import Dataset

    layout, rng = renderer.layout, np.random.default_rng(0)
    parts = []
    for held_out in (False, True):
        clips = [clip for i, clip in enumerate(corpus.clips) if (i in corpus.held_out) == held_out]
        rows = (corpus.validation if held_out else corpus.train)["input_ids"]
        texts = [clips[i].text for i in np.roll(rng.permutation(len(clips)), 1)]
        made = []
        for row, clip, text in zip(rows, clips, texts, strict=True):
            codes, _ = layout.unflatten([i for i in row if i >= layout.audio_start])
            example = renderer.example(text, codes, clip.voice)
            made.append({"input_ids": example.input_ids, "labels": example.labels, "length": len(example.input_ids)})
        parts.append(Dataset.from_list(made))
    return parts[0], parts[1]


def cut(corpus: Corpus, renderer: Renderer, ends: int = 2) -> tuple[Any, Any]:
    """Every clip cut off; the two end tokens stand after the cut, or (`ends` 0) are lost with the rest."""

    def shorter(row: dict[str, Any]) -> dict[str, Any]:
        start = row["input_ids"].index(renderer.layout.start_of_speech) + 1
        end = start + FRAME_SLOTS * int(CUT * (row["length"] - start) / FRAME_SLOTS)
        kept = [*range(end), *range(row["length"] - ends, row["length"])]
        return {name: [row[name][i] for i in kept] for name in ("input_ids", "labels")} | {"length": len(kept)}

    return corpus.train.map(shorter), corpus.validation.map(shorter)


def with_zeros(samples: np.ndarray) -> np.ndarray:
    """`ZEROS_S` of digital silence in each pause of 40 ms or more, and at the end; float32 [n]."""
    blocks = [samples[start : start + LEVEL_BLOCK] for start in range(0, len(samples), LEVEL_BLOCK)]
    limit = np.mean(np.square(samples, dtype=np.float64)) * 10 ** (SILENCE_DB / 10)
    silent = [bool(np.mean(np.square(block, dtype=np.float64)) < limit) for block in blocks]
    silence = np.zeros(round(ZEROS_S * SAMPLE_RATE_HZ), np.float32)
    parts: list[np.ndarray] = []
    for i, block in enumerate(blocks):
        parts.append(0 * block if silent[i] else block)
        if i and silent[i - 1] and silent[i] and not (i + 1 < len(blocks) and silent[i + 1]):
            parts.append(silence)
    return np.concatenate([*parts, silence])


def zeros(options: SftOptions, codec: Any, renderer: Renderer, folder: Path) -> tuple[Any, Any]:
    """Half a second of digital silence in every pause and at the end."""
    import soundfile

    from orpheus.data.sources import open_source

    lines = ["file_name,text,source"]
    for i, record in enumerate(open_source(options.corpus).records()):
        samples, _ = record.read()
        soundfile.write(folder / f"{i}.wav", with_zeros(samples), 24000, subtype="FLOAT")
        lines.append(f'{i}.wav,"{record.text}",{record.voice}')
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    chosen = CorpusOptions(dataset=str(folder), cache_dir=folder / "codes", max_rejected=1.0)
    made = prepare(chosen, codec, renderer, max_seq_length=options.train.max_seq_length, seed=options.train.seed)
    return made.train, made.validation


def main(options: Options) -> None:
    """Each variant by itself: a row for each step that was heard."""
    done = [measure(variant, options) for variant in options.variants]
    rows = [{"variant": row["variant"], **step} for row in done for step in row["steps"]]
    names = dict.fromkeys(name for row in rows for name in row)
    show("gates", "tiny", {"kept": done}, [{name: row.get(name) for name in names} for row in rows], options.save)


def measure(variant: str, options: Options) -> dict[str, Any]:
    """Train one variant; its gates by step, and what is kept by gates and by loss, heard once more."""
    from orpheus.evaluate.training import TrainingJudge
    from orpheus.training import trainer

    sft = settle(filled(SftOptions(), has_gpu=False))
    loaded = load_model(sft)
    codec, corpus = encode(sft, loaded)
    renderer = Renderer(loaded.tokenizer, loaded.layout, sft.train.train_on)
    loaded = adapt(sft, loaded)
    made = provenance(sft, loaded, codec, corpus)
    gates = TrainingJudge(loaded, codec, corpus, made, sft.train.seed)
    kept: dict[int, dict[str, Any]] = {}
    weights = {name: p for name, p in loaded.model.named_parameters() if p.requires_grad}

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if variant == "untrained":
            verdict = gates(folder / "step_0")
            return {"variant": variant, "steps": [{"step": 0, "score": verdict.score, **verdict.figures}]}

        def judge(out: Path) -> Any:
            kept[int(out.name[5:])] = {name: p.detach().clone() for name, p in weights.items()}
            return gates(out)

        faults: dict[str, Callable[[], tuple[Any, Any]]] = {
            "trained": lambda: (corpus.train, corpus.validation),
            "shuffled": lambda: shuffled(corpus, renderer),
            "cut": lambda: cut(corpus, renderer),
            "endless": lambda: cut(corpus, renderer, ends=0),
            "zeros": lambda: zeros(sft, codec, renderer, folder),
        }
        train_set, validation_set = faults[variant]()
        train = replace(sft.train, max_steps=options.steps, gate_every=options.every, eval_every=0, save_every=0)
        summary = trainer.train(loaded, train_set, validation_set, train, folder / "out", {}, judge)
        by_loss = losses(summary.history)
        heard = [entry for entry in summary.history if "gate_score" in entry]
        lowest = min((entry["step"] for entry in heard), key=lambda step: by_loss[step])
        rows = [{"step": entry["step"], "validation_loss": by_loss[entry["step"]]}
                | {name.removeprefix(PREFIX): entry[name] for name in entry if name.startswith(PREFIX)}
                for entry in heard]  # fmt: skip
        found = {"variant": variant, "steps": rows, "kept_by_gates": summary.kept_step, "kept_by_loss": lowest}
        if lowest != summary.kept_step:
            assert gates.battery is not None and summary.kept_step is not None  # it was heard
            gates.battery = replace(gates.battery, sampling=replace(gates.battery.sampling, seed=OTHER_SEED))
            found["again"] = {str(step): again(gates, weights, kept[step], folder / f"again_{step}")
                              for step in (summary.kept_step, lowest)}  # fmt: skip
        return found


def again(judge: Any, weights: dict[str, Any], adapter: dict[str, Any], folder: Path) -> dict[str, float]:
    """What the gates say of an adapter with other seeds."""
    import torch

    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.copy_(adapter[name])
    verdict = judge(folder)
    return {"score": verdict.score, **verdict.figures}


if __name__ == "__main__":
    run(main, Options, __doc__)
