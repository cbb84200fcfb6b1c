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
import secrets
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.config import (
    EMBEDDED,
    PRESETS,
    CorpusOptions,
    RecogniserName,
    SamplingOptions,
    VoiceOptions,
    as_dict,
    check_ranges,
)
from orpheus.data.clips import Unfit, check_record
from orpheus.data.early import check_source
from orpheus.data.sources import Record, open_source
from orpheus.errors import UserError, check_folder
from orpheus.evaluate.report import Heard, Report, Row, Take
from orpheus.format.prompt import Voices, find_tags
from orpheus.format.texts import lines_of
from orpheus.format.tokens import Stop
from orpheus.hearing.metrics import ENGLISH, median_f0_hz, word_errors, words
from orpheus.hearing.recognise import PocketSphinx, Recogniser, find_recogniser
from orpheus.model.adapter import adapter_folder
from orpheus.model.base import preset_of
from orpheus.model.pairs import base_of
from orpheus.speak.inference import NoSpeech, OrpheusInference, check_speaking, load_voice
from orpheus.speak.speech import Speech

log = logging.getLogger(__name__)

TEST_CORPUS = f"{EMBEDDED}test_corpus"
NO_RECOGNISER = "no recogniser: pip install faster-whisper or pocketsphinx, and don't turn it off by --recogniser none"
NO_DETECTOR = "the tag detector knows the sounds of the embedded voices only"


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


class TagDetector(Protocol):
    """Finds the sounds of tags, as the module `orpheus.hearing.tags` does."""

    @property
    def KNOWN_TAGS(self) -> tuple[str, ...]:
        """The tags that it knows, as they are written: '<laughs>'."""
        ...

    def detect_tags(self, samples: np.ndarray) -> Sequence[Any]:
        """What was found in float32 [n] at 24 kHz, each with the attribute `tag`."""
        ...


@dataclass(frozen=True)
class Recording:
    """A held-out clip: its text, whose voice it is, and its samples, float32 [n] at 24 kHz."""

    name: str
    text: str
    voice: str | None
    samples: np.ndarray


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


def find_detector(tts: OrpheusInference) -> TagDetector | None:
    """The detector, where it knows the sounds: those of the embedded voices."""
    if tts.codec.name != PRESETS["tiny"].codec:
        return None
    from orpheus.hearing import tags as detect

    return detect


def held_out(corpus: str, tts: OrpheusInference, voice: str | None = None, limit: int = 0) -> list[Recording]:
    """The clips to measure `tts` on, sorted by voice: those of `voice`, or of the voices that the model has.

    Clips without a voice fit every model. UserError: none fits, or it is not known which of several voices do.
    """
    fit = fitting(corpus, Voices(tts.trained_voices, tts.base_voices, tts.has_adapter), voice)
    clips: list[Recording] = []
    for record in (r for turn in zip_longest(*fit.values()) for r in turn if r is not None):
        if limit and len(clips) == limit:
            break
        try:
            clip, samples = check_record(record, tts.codec, tts.renderer, CorpusOptions.min_seconds, math.inf)
        except Unfit as unfit:
            log.warning("left out: %s: %s", record.name, unfit)
            continue
        clips.append(Recording(clip.name, clip.text, clip.voice, samples))
    if not clips:
        raise UserError(f"none of the clips of {corpus} can be used: see the lines above")
    return sorted(clips, key=lambda clip: clip.voice or "")


def fitting(corpus: str, voices: Voices, voice: str | None) -> dict[str | None, list[Record]]:
    """The records of a data set by voice: of `voice`, or of the voices that a model has. Nothing is decoded.

    UserError: none fits, or it is not known which of several voices do.
    """
    source = open_source(CorpusOptions(dataset=corpus))
    records: dict[str | None, list[Record]] = defaultdict(list)
    for record in source.records():
        records[str(record.voice or "").strip() or None].append(record)
    wanted = (voice,) if voice else voices.trained if voices.adapted else voices.base
    fit = {name: part for name, part in records.items() if name is None or not wanted or name in wanted}
    has = ", ".join(sorted(name for name in records if name))
    if not fit:
        raise UserError(f"no clip of {source.name} is spoken by {', '.join(wanted)}: it has {has}; name one of them "
                        "by --voice, or other recordings by --corpus")  # fmt: skip
    if len(fit) > 1 and not wanted:
        raise UserError(f"{source.name} has several voices, and it is not known which the model was trained on: "
                        f"name one of {has} by --voice")  # fmt: skip
    return fit


def evaluate(
    tts: OrpheusInference,
    clips: Sequence[Recording],
    recogniser: Recogniser | None,
    *,
    domain: Recogniser | None = None,
    detector: TagDetector | None = None,
    voice: str | None = None,
    sampling: SamplingOptions | None = None,
    samples: int = 1,
    batch_size: int = 8,
    out: Path | None = None,
    overwrite: bool = False,
) -> Report:
    """Speak the text of each clip `samples` times and measure recordings, codec and speech alike.

    Args:
        recogniser, domain, detector: None leaves their figures out; the report's `missing` says so.
        voice: for the prompts; None: that of each clip.
        sampling: clip i of n draws take k from seed + k n + i.
        out: also write the generated WAVs there.
    Returns:
        The figures, over the clips (`metrics`: how intervals are made). Sums stand over sums:
        wer: errors / words. An utterance without audio has all words wrong.
        out_of_slot_rate: rejected ids / sampled ids, over the whole vocabulary, without any mask. An id is rejected
            when it is neither end_of_speech nor in the range of its slot; an utterance stops at its first one, so
            this is the chance per token, and 1 utterance can add 1 at most. The id that ends an utterance counts
            as sampled.
        end_of_speech_share: utterances that the model itself ended, after some speech / utterances.
        duration_ratio: seconds generated / seconds of the originals, however the utterances ended.
        realtime_factor: seconds of work (model and codec, `batch_size` at once) / seconds generated.
        tag_hit_rate: tags heard in the utterance they were written for / tags written (each once an utterance).
        tag_false_alarm_rate: known tags heard that were not written / known tags not written. Texts with a tag
            unknown to the detector count in neither.
        f0_median_hz: the median over utterances of each one's median pitch.
    """
    sampling = tts.drawn_as(sampling)
    seed = secrets.randbelow(2**31) if sampling.seed is None else sampling.seed
    listen = _Listener(recogniser, domain, detector)
    rows: list[Row] = []
    sounds: dict[str, np.ndarray] = {}
    for batch in _batches(clips, batch_size):
        copies = [tts.codec.decode(codes) for codes in tts.codec.encode([clip.samples for clip in batch])]
        rounds = [_speak(tts, batch, voice, replace(sampling, seed=seed + take * len(clips) + len(rows)))
                  for take in range(samples)]  # fmt: skip
        for clip, copy, attempts in zip(batch, copies, zip(*rounds, strict=True), strict=True):
            if out:
                _save(attempts, out, len(rows), overwrite)
            if not rows:
                spoken = {"generated": attempts[0][0].samples} if isinstance(attempts[0][0], Speech) else {}
                sounds = {"original": clip.samples, "reconstruction": copy, **spoken}
            rows.append(Row(clip.name, clip.voice, clip.text, listen(clip.text, clip.samples), listen(clip.text, copy),
                            tuple(listen.take(clip, *attempt) for attempt in attempts)))  # fmt: skip
        log.info("measured %d of %d clips", len(rows), len(clips))
    asked = [word for clip in clips for word in words(clip.text)]
    known = getattr(domain, "vocabulary", None)
    about = {
        "words": len(asked),
        "words_known_domain": None if known is None else sum(word in known for word in asked),
        "tags": sum(len(find_tags(clip.text)) for clip in clips),
        "seed": seed,
        "sampling": as_dict(replace(sampling, seed=seed)),
        "batch_size": batch_size,
        "recogniser": recogniser.name if recogniser else None,
        "recogniser_domain": domain.name if domain else None,
        "detector": list(detector.KNOWN_TAGS) if detector else None,
        **tts.provenance["model"],
        "versions": tts.provenance["versions"],
    }
    report = Report(rows, about, domain is not None, sounds=sounds)
    report.missing.update(_missing(report, recogniser, detector))
    return report


def prompt_voice(tts: OrpheusInference, clip_voice: str | None, voice: str | None) -> str | None:
    """The voice to ask for: None, the text alone, for an adapter that was trained without names."""
    return None if tts.has_adapter and not tts.trained_voices else voice or clip_voice


Attempt = tuple[Speech | NoSpeech, float]  # how a text was spoken, and its share of the work in seconds


def _speak(tts: OrpheusInference, batch: Sequence[Recording], voice: str | None,
           sampling: SamplingOptions) -> list[Attempt]:  # fmt: skip
    """The texts of clips of one voice, all at once."""
    began = time.perf_counter()
    spoken = tts.attempt([clip.text for clip in batch], prompt_voice(tts, batch[0].voice, voice), sampling)
    work_s = (time.perf_counter() - began) / len(batch)
    return [(speech, work_s) for speech in spoken]


def _batches(clips: Sequence[Recording], size: int) -> Iterator[list[Recording]]:
    """The clips in order, at most `size` at a time and of one voice."""
    for _, same in groupby(clips, key=lambda clip: clip.voice):
        part = list(same)
        yield from (part[start : start + size] for start in range(0, len(part), size))


def _save(attempts: Sequence[Attempt], folder: Path, clip: int, overwrite: bool) -> None:
    for take, (speech, _) in enumerate(attempts):
        if isinstance(speech, Speech):
            speech.save(folder / f"clip_{clip}_take_{take}.wav", overwrite=overwrite)


class _Listener:
    """Measures sounds with whatever recognisers and detector there are."""

    def __init__(self, recogniser: Recogniser | None, domain: Recogniser | None, detector: TagDetector | None) -> None:
        self.recogniser, self.domain, self.detector = recogniser, domain, detector

    def __call__(self, text: str, samples: np.ndarray) -> Heard:
        """A sound, float32 [n] at 24 kHz, against the text that it should say; n = 0 where nothing was said."""
        counts: dict[str, tuple[float, float]] = {}

        def transcript(name: str, recogniser: Recogniser | None) -> str | None:
            if recogniser is None:
                return None
            heard = recogniser.transcribe(samples) if len(samples) else ""
            language = recogniser.language
            counts[name] = (word_errors(text, heard, language), len(words(text, language)))
            return heard

        return Heard(
            seconds=len(samples) / SAMPLE_RATE_HZ,
            f0_hz=median_f0_hz(samples),
            transcript=transcript("wer", self.recogniser),
            transcript_domain=transcript("wer_domain", self.domain),
            tags=self._tags(text, samples, counts),
            counts=counts,
        )

    def _tags(self, text: str, samples: np.ndarray, counts: dict[str, tuple[float, float]]) -> tuple[str, ...] | None:
        if self.detector is None:
            return None
        found = {detection.tag for detection in self.detector.detect_tags(samples)} if len(samples) else set()
        known, written = set(self.detector.KNOWN_TAGS), {f"<{name}>" for name in find_tags(text)}
        if written <= known:
            counts["tag_hit_rate"] = (len(found & written), len(written))
            counts["tag_false_alarm_rate"] = (len(found - written), len(known - written))
        return tuple(sorted(found))

    def take(self, clip: Recording, speech: Speech | NoSpeech, work_s: float) -> Take:
        """The text of `clip`, spoken: what came of it."""
        if isinstance(speech, Speech):
            heard, tokens = self(clip.text, speech.samples), speech.timings.tokens
        else:
            heard, tokens = self(clip.text, np.zeros(0, np.float32)), speech.tokens
        heard.counts.update(
            out_of_slot_rate=(speech.finish_reason == Stop.OUT_OF_RANGE, tokens),
            end_of_speech_share=(heard.seconds > 0 and speech.finish_reason == Stop.END_OF_SPEECH, 1),
            duration_ratio=(heard.seconds, len(clip.samples) / SAMPLE_RATE_HZ),
            realtime_factor=(work_s, heard.seconds),
        )
        return Take(heard, speech.seed, tokens, speech.finish_reason, speech.finish_detail, work_s)


def _missing(report: Report, recogniser: Recogniser | None, detector: TagDetector | None) -> dict[str, str]:
    """Why a figure could not be had, by its key."""
    known = ", ".join(detector.KNOWN_TAGS) if detector else ""
    reasons = {
        "wer": "no text has a word" if recogniser else NO_RECOGNISER,
        "tag": f"no text has tags of {known} alone" if detector else NO_DETECTOR,
        "f0": "nothing in these sounds is voiced",
        "realtime": "no audio was generated",
    }
    missing = {name: reasons[name.partition("_")[0]] for name, figure in report.figures().items() if figure is None}
    if len(report.rows) == 1:
        missing["*_ci"] = "one clip gives no interval"
    return missing
