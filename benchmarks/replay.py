"""Do tags survive a fine-tune on recordings without any, and does `--replay` help?

    python benchmarks/replay.py --save

The embedded base is trained on those clips of the embedded corpus that have no tag, without replay and with. Before and
after, it speaks the tagged sentences of the test corpus, with the new voice and with the base's own; counted is how
many of their tags the detector hears.
"""

from __future__ import annotations

import csv
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import show
from orpheus.cli import run
from orpheus.config import (
    PRESETS,
    CorpusOptions,
    ModelOptions,
    SamplingOptions,
    SftOptions,
    TrainOptions,
    embedded_path,
)
from orpheus.data.sources import open_source
from orpheus.evaluate.evaluate import TEST_CORPUS
from orpheus.format.prompt import find_tags
from orpheus.hearing.metrics import ratio
from orpheus.hearing.tags import KNOWN_TAGS, detect_tags
from orpheus.speak.inference import NoSpeech, OrpheusInference
from orpheus.tools.train import make, settle

TINY = PRESETS["tiny"]


@dataclass(frozen=True)
class Options:
    """Measure how many tags are heard before and after a training without tags, by how many utterances are replayed."""

    replay: tuple[int, ...] = (0, 24)
    """Utterances of the base that are mixed in, one training each."""
    epochs: float = TINY.epochs
    """Passes over the clips of each training."""
    samples: int = 2
    """How often each tagged sentence is spoken by each kind of voice."""
    seed: int = TrainOptions.seed
    """Of the trainings and of what is spoken."""
    save: bool = False
    """Write the result to benchmarks/results."""


def without_tags(folder: Path) -> str:
    """The embedded corpus' clips without tags as a data set; returns the name of their voice."""
    corpus = Path(embedded_path(TINY.dataset))
    with open(corpus / "metadata.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if not find_tags(row["text"])]
    (folder / "clips").mkdir(parents=True)
    for row in rows:
        shutil.copy(corpus / row["file_name"], folder / "clips")
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return rows[0]["source"]


def tagged() -> list[str]:
    """The test corpus' sentences with a tag."""
    records = open_source(CorpusOptions(dataset=TEST_CORPUS)).records()
    return [record.text for record in records if find_tags(record.text)]


def measure(tts: OrpheusInference, kind: str, voices: Sequence[str], options: Options) -> dict[str, Any]:
    """The tag rate of some voices, each text by one of them in turn, and how many utterances ended by themselves."""
    hits, written, ended = [], [], 0
    for number, text in enumerate(tagged()):
        found = []
        for sample in range(options.samples):
            sampling = SamplingOptions(seed=options.seed + number * options.samples + sample)
            [item] = tts.attempt([text], voices[(number + sample) % len(voices)], sampling)
            samples = None if isinstance(item, NoSpeech) else item.samples
            found.append(set() if samples is None else {d.tag for d in detect_tags(samples)})
            ended += item.finish_reason == "end_of_speech"
        wanted = {f"<{name}>" for name in find_tags(text)} & set(KNOWN_TAGS)
        hits.append(sum(len(wanted & tags) for tags in found))
        written.append(len(wanted) * options.samples)
    rate = ratio(hits, written)
    assert rate is not None
    low, high = rate.interval or (None, None)
    return {"voices": kind, "tags_heard": round(rate.value, 3), "low": low and round(low, 3),
            "high": high and round(high, 3), "of": sum(written),
            "ended": round(ended / (len(hits) * options.samples), 3)}  # fmt: skip


def main(options: Options) -> None:
    """The base, then a training for each number; all of them speak the same sentences by the same seeds."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        dataset = Path(temporary) / "corpus"
        voice = without_tags(dataset)
        base = OrpheusInference(None, TINY.base, TINY.codec)
        own = base.base_voices
        rows.append({"training": "none", "loss": None, **measure(base, "the base's", own, options)})
        print(rows[-1], flush=True)
        for count in options.replay:
            folder = Path(temporary) / f"replay_{count}"
            chosen = settle(SftOptions(
                model=ModelOptions(preset="tiny"), corpus=CorpusOptions(dataset=str(dataset)), output_dir=folder,
                train=TrainOptions(replay=count, epochs=options.epochs, seed=options.seed, eval_every=0, save_every=0),
                speak_samples=False))  # fmt: skip
            loss = make(chosen).validation_after
            tts = OrpheusInference(folder)
            for kind, voices in (("the trained", (voice,)), ("the base's", own)):
                about = {"training": f"replay {count}", "loss": loss and round(loss, 3)}
                rows.append(about | measure(tts, kind, voices, options))
                print(rows[-1], flush=True)
    size = "tiny" if options.epochs == TINY.epochs else f"tiny_{options.epochs:g}_epochs"
    show("replay", size, {"epochs": options.epochs, "samples": options.samples}, rows, options.save)


if __name__ == "__main__":
    run(main, Options, __doc__)
