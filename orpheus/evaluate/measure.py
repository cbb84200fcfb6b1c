"""Clips and a voice in, a report out: each text is spoken, and all that can be heard is measured."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np

from orpheus.config import SamplingOptions, as_dict
from orpheus.evaluate.clips import Recording
from orpheus.evaluate.listen import Listener, TagDetector, missing
from orpheus.evaluate.report import Report, Row
from orpheus.format.prompt import find_tags
from orpheus.hearing.metrics import words
from orpheus.hearing.recognise import Recogniser
from orpheus.speak.inference import OrpheusInference
from orpheus.speak.speech import Speech
from orpheus.speak.utterance import NoSpeech

log = logging.getLogger(__name__)


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
    listen = Listener(recogniser, domain, detector)
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
    report.missing.update(missing(report, recogniser, detector))
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
