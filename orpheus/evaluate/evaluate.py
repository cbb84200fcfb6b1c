"""Measure a voice on recordings that it was not trained on.

    orpheus evaluate --preset tiny                                      # the embedded base on the embedded test clips
    orpheus evaluate --adapter lora_model --corpus held_out             # your adapter on your own recordings
    orpheus evaluate --preset tiny --json > figures.json

Each clip is heard three times: as it was recorded, after the codec alone, and as the model speaks its text. The
recording shows what recogniser and detector can do at best, the codec what the model can reach at best.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

from orpheus.config import (
    EMBEDDED,
    PRESETS,
    CorpusOptions,
    RecogniserName,
    SamplingOptions,
    VoiceOptions,
    check_ranges,
)
from orpheus.data.early import check_source
from orpheus.data.sources import open_source
from orpheus.errors import UserError, check_folder
from orpheus.evaluate.clips import fitting, held_out
from orpheus.evaluate.listen import find_detector
from orpheus.evaluate.measure import evaluate
from orpheus.format.texts import lines_of
from orpheus.hearing.metrics import ENGLISH
from orpheus.hearing.recognise import PocketSphinx, find_recogniser
from orpheus.model.adapter import adapter_folder
from orpheus.model.base import preset_of
from orpheus.model.pairs import base_of
from orpheus.speak.inference import check_speaking, load_voice

log = logging.getLogger(__name__)

TEST_CORPUS = f"{EMBEDDED}test_corpus"


@dataclass(frozen=True)
class EvaluateOptions:
    """Measure a voice: words, pitch, tags, stopping and speed, each with its 95 % interval."""

    corpus: str | None = None
    """Held-out recordings with texts, laid out as for training. Default with the embedded base: its test clips."""
    limit: int = 0
    """Use at most N clips, taken from each voice in turn; 0 means all."""
    samples: int = 1
    """How often each text is spoken."""
    voice: str | None = None
    """Only clips of this voice. Default: of the voices the adapter was trained on, or the base without one."""
    batch_size: int = 8
    """Texts spoken at once."""
    recogniser: RecogniserName = "auto"
    """What writes the words down; auto: Whisper where it is installed with a model, else PocketSphinx; none: no WER."""
    whisper_model: str | None = None
    """A CTranslate2 Whisper model: folder, hub id or size. Default: tiny.en."""
    language: str = ENGLISH
    """Language of the texts, two letters: of the recogniser, and of the numbers that are written out."""
    domain: str | None = None
    """Data set or .txt file whose texts make a second language model for the recogniser: the figures _domain."""
    json: bool = False
    """Print one JSON object on standard output instead of the table, and nothing else there."""
    out: Path | None = None
    """Folder for the generated WAVs, report.json and metrics.png."""
    overwrite: bool = False
    """Replace a report that is in that folder already."""
    model: VoiceOptions = field(default_factory=lambda: VoiceOptions(adapter=None))
    sampling: SamplingOptions = field(default_factory=lambda: SamplingOptions(seed=0))

    def __post_init__(self) -> None:
        check_ranges(self, limit=(0, math.inf), samples=(1, math.inf), batch_size=(1, math.inf))
        if self.whisper_model and self.recogniser not in ("auto", "whisper"):
            raise UserError(f"--whisper-model {self.whisper_model} is of no use with --recogniser {self.recogniser}")


def main(options: EvaluateOptions) -> None:
    """Clips -> voice -> report."""
    report_file = options.out / "report.json" if options.out else None
    if report_file and report_file.exists() and not options.overwrite:
        raise UserError(f"{report_file} exists already: choose another --out, or --overwrite it")
    # Libraries print where they like; with --json standard output is for the one object.
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        corpus = options.corpus or default_corpus(options.model)
        voices = check_speaking(options.model, voice=options.voice)
        if options.out:
            check_folder(options.out, "--out")
        check_source(CorpusOptions(dataset=corpus))
        if voices:
            fitting(corpus, voices, options.voice)
        texts = domain_texts(options.domain) if options.domain else None
        recogniser = find_recogniser(options.recogniser, options.whisper_model, options.language)
        domain = PocketSphinx(texts) if texts is not None else None
        tts = load_voice(options.model)
        clips = held_out(corpus, tts, options.voice, options.limit)
        report = evaluate(tts, clips, recogniser, domain=domain, detector=find_detector(tts), voice=options.voice,
                          sampling=options.sampling, samples=options.samples, batch_size=options.batch_size,
                          out=options.out, overwrite=options.overwrite)  # fmt: skip
        report.about["corpus"] = corpus
        for reason in dict.fromkeys(report.missing.values()):
            names = ", ".join(name for name, why in report.missing.items() if why == reason)
            log.warning("not measured: %s (%s)", names, reason)
        if options.out:
            log.info("%s", report.save(options.out))
    print(json.dumps(report.as_dict(), default=str) if options.json else report.table())


def default_corpus(model: VoiceOptions) -> str:
    """The embedded test clips for the embedded base; UserError for any other."""
    base = model.base or (base_of(adapter_folder(model.adapter)) if model.adapter else None)
    if not base and model.adapter is None:
        base = preset_of(model.preset).base
    if base == PRESETS["tiny"].base:
        return TEST_CORPUS
    raise UserError(
        f"name the recordings to measure on, by --corpus: for {base or model.adapter} there is no default "
        "(--preset tiny has one)"
    )


def domain_texts(name: str) -> list[str]:
    """The texts of a data set, or the lines of a .txt file. UserError if it can't be read."""
    if not name.endswith(".txt"):
        return [str(record.text) for record in open_source(CorpusOptions(dataset=name)).records() if record.text]
    try:
        return lines_of(Path(name).read_bytes(), name)
    except OSError as error:
        raise UserError(f"can't read the domain's texts from {name}: {error}") from error
