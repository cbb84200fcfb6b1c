"""Measure a voice on recordings that it was not trained on.

    orpheus evaluate --preset tiny                                      # the embedded base on the embedded test clips
    orpheus evaluate --adapter lora_model --corpus held_out             # your adapter on your own recordings
    orpheus evaluate --preset tiny --json > figures.json
    orpheus evaluate --adapter lora_a --compare lora_b base --corpus held_out --out evaluation   # then open page.html

Each clip is heard three times: as it was recorded, after the codec alone, and as the model speaks its text. The
recording shows what recogniser and detector can do at best, the codec what the model can reach at best.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
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
from orpheus.evaluate.clips import fitting, held_out, seen_before
from orpheus.evaluate.compare import BASE, Comparison, short_names
from orpheus.evaluate.listen import find_detector, find_ears
from orpheus.evaluate.measure import evaluate
from orpheus.evaluate.page import save_page
from orpheus.evaluate.report import Report
from orpheus.format.texts import lines_of
from orpheus.hearing.metrics import ENGLISH
from orpheus.hearing.recognise import PocketSphinx, Recogniser, find_recogniser
from orpheus.model.adapter import adapter_folder
from orpheus.model.base import free_memory, preset_of
from orpheus.model.pairs import base_of
from orpheus.model.provenance import Provenance, write_json
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
    compare: tuple[str, ...] = ()
    """More voices, spoken on the same clips beside the first: adapters' folders or hub ids; `base`: the base alone."""
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
    """Folder for page.html (figures, and clips to listen to), the generated WAVs, report.json and metrics.png."""
    overwrite: bool = False
    """Replace a report that is in that folder already."""
    model: VoiceOptions = field(default_factory=lambda: VoiceOptions(adapter=None))
    sampling: SamplingOptions = field(default_factory=lambda: SamplingOptions(seed=0))

    def __post_init__(self) -> None:
        check_ranges(self, limit=(0, math.inf), samples=(1, math.inf), batch_size=(1, math.inf))
        if self.whisper_model and self.recogniser not in ("auto", "whisper"):
            raise UserError(f"--whisper-model {self.whisper_model} is of no use with --recogniser {self.recogniser}")


def main(options: EvaluateOptions) -> None:
    """Clips -> voices, one after another -> a report."""
    report_file = options.out / "report.json" if options.out else None
    if report_file and report_file.exists() and not options.overwrite:
        raise UserError(f"{report_file} exists already: choose another --out, or --overwrite it")
    # Libraries print where they like; with --json standard output is for the one object.
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        corpus = options.corpus or default_corpus(options.model)
        wanted = wanted_voices(options)
        check(options, corpus, wanted)
        texts = domain_texts(options.domain) if options.domain else None
        recogniser = find_recogniser(options.recogniser, options.whisper_model, options.language)
        domain = PocketSphinx(texts) if texts is not None else None
        comparison = Comparison(dict(measured(options, corpus, wanted, recogniser, domain)))
        if options.out:
            if comparison.differences:
                write_json(options.out / "report.json", comparison.as_dict())
            log.info("%s", save_page(options.out / "page.html", comparison))
    print(json.dumps(comparison.as_dict(), default=str) if options.json else comparison.table())


def wanted_voices(options: EvaluateOptions) -> dict[str, VoiceOptions]:
    """The voices to measure by their names, that of --adapter first. UserError: one is named twice."""
    adapters = [options.model.adapter, *(None if name == BASE else name for name in options.compare)]
    if len(set(adapters)) < len(adapters):
        raise UserError(f"--compare names {max(adapters, key=adapters.count) or BASE} twice: name each voice once, and "
                        "not that of --adapter")  # fmt: skip
    models = [replace(options.model, adapter=adapter) for adapter in adapters]
    if options.model.adapter and None in adapters:
        folder = adapter_folder(options.model.adapter)
        made = Provenance.load(folder)
        models[adapters.index(None)] = replace(options.model, adapter=None, base=options.model.base or base_of(folder),
                                               codec=options.model.codec or (made.codec if made else None))  # fmt: skip
    return dict(zip(short_names(adapters), models, strict=True))


def check(options: EvaluateOptions, corpus: str, wanted: Mapping[str, VoiceOptions]) -> None:
    """UserError for what can't work, before anything heavy is loaded."""
    voices = [check_speaking(model, voice=None if i else options.voice) for i, model in enumerate(wanted.values())]
    if options.out:
        check_folder(options.out, "--out")
    check_source(CorpusOptions(dataset=corpus))
    if voices[0]:
        fitting(corpus, voices[0], options.voice)


def measured(options: EvaluateOptions, corpus: str, wanted: Mapping[str, VoiceOptions],
             recogniser: Recogniser | None, domain: Recogniser | None) -> Iterator[tuple[str, Report]]:  # fmt: skip
    """The voices' reports, each saved as soon as it is there; in memory is one voice at a time."""
    first: Report | None = None
    for name, model in wanted.items():
        tts = load_voice(model)
        if first is None:
            clips = held_out(corpus, tts, options.voice, options.limit)
            ears = find_ears(recogniser, domain, find_detector(tts))
        folder = options.out / name.replace("/", "_") if options.out and len(wanted) > 1 else options.out
        voice = options.voice if first is None or options.voice in tts.voices else None
        report = evaluate(tts, clips, ears, voice=voice, sampling=options.sampling, samples=options.samples,
                          batch_size=options.batch_size, out=folder, overwrite=options.overwrite,
                          like=first)  # fmt: skip
        report.about["corpus"] = corpus
        report.about["warnings"] = [line for line in (seen_before(name, tts.seen, clips),) if line]
        for line in report.about["warnings"]:
            log.warning("%s", line)
        for reason in dict.fromkeys(report.missing.values()):
            keys = ", ".join(figure for figure, why in report.missing.items() if why == reason)
            log.warning("not measured: %s (%s)", keys, reason)
        if folder:
            log.info("%s", report.save(folder))
        first = first or report
        tts.engine.close()
        del tts
        free_memory()
        yield name, report


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
