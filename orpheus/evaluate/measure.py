"""Clips and a voice in, a report out: each text is spoken, and all that can be heard is measured."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from orpheus.config import SamplingOptions, as_dict
from orpheus.evaluate import gates
from orpheus.evaluate.clips import Recording
from orpheus.evaluate.listen import Ears, Listener, Target, missing, targets
from orpheus.evaluate.report import Report, Row
from orpheus.format.prompt import find_tags
from orpheus.hearing.metrics import words
from orpheus.speak.inference import OrpheusInference
from orpheus.speak.speech import Speech
from orpheus.speak.utterance import NoSpeech

log = logging.getLogger(__name__)

SHOWN = 8  # clips whose sounds are kept, to be looked at and listened to


def evaluate(
    tts: OrpheusInference,
    clips: Sequence[Recording],
    ears: Ears,
    *,
    voice: str | None = None,
    sampling: SamplingOptions | None = None,
    samples: int = 1,
    batch_size: int = 8,
    out: Path | None = None,
    overwrite: bool = False,
    like: Report | None = None,
) -> Report:
    """Speak the text of each clip `samples` times and measure recordings, codec and speech alike.

    Args:
        voice: for the prompts; None: that of each clip.
        sampling: clip i of n draws take k from seed + k n + i.
        out: also write the generated WAVs there.
        like: a report on the same clips, heard with the same ears: recordings (and codec, if it is the same) are not
            measured again.
    Returns:
        The figures, over the clips (`metrics`: how intervals are made). Sums stand over sums:
        wer: errors / words. An utterance without audio has all words wrong.
        speaker_similarity: the cosine with the mean voice of the other recordings of this speaker, never of the clip
            itself; dnsmos, mel_cepstral_db (against the recording), trailing_silence_s: means over what has audio.
        letters_per_s: letters of the texts / seconds without the silence at both ends.
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
        f0_median_hz, f0_range_st: the median over utterances of each one's median pitch, and of its range.
    """
    sampling = tts.drawn_as(sampling)
    seed = secrets.randbelow(2**31) if sampling.seed is None else sampling.seed
    listen = Listener(ears)
    known = like.rows if like else []
    same_codec = like is not None and like.about["codec_identity"] == tts.codec.identity
    shown = set(np.linspace(0, len(clips) - 1, min(SHOWN, len(clips)), dtype=int).tolist())
    codes = [c for batch in _batches(targets(clips, Ears()), batch_size)
             for c in tts.codec.encode([target.clip.samples for target in batch])]  # fmt: skip
    usual = gates.usual_in(clips, codes, tts.usual)
    recorded: list[gates.Facts] = []
    said: list[gates.Facts] = []
    rows: list[Row] = []
    sounds: dict[int, dict[str, np.ndarray]] = {}
    for batch in _batches(targets(clips, ears), batch_size):
        copies = [tts.codec.decode(coded) for coded in codes[len(rows) : len(rows) + len(batch)]]
        rounds = [_speak(tts, batch, voice, replace(sampling, seed=seed + take * len(clips) + len(rows)))
                  for take in range(samples)]  # fmt: skip
        for target, copy, attempts in zip(batch, copies, zip(*rounds, strict=True), strict=True):
            clip, index = target.clip, len(rows)
            if out:
                _save(attempts, out, index, overwrite)
            if index in shown:
                spoken = {"generated": attempts[0][0].samples} if isinstance(attempts[0][0], Speech) else {}
                sounds[index] = {"original": clip.samples, "reconstruction": copy, **spoken}
            original = known[index].original if known else listen(target, clip.samples, copy=False)
            rebuilt = known[index].reconstruction if same_codec else listen(target, copy)
            rows.append(Row(clip.name, clip.voice, clip.text, original, rebuilt,
                            tuple(listen.take(target, *attempt) for attempt in attempts)))  # fmt: skip
            recorded.append(gates.facts_of(ears, rebuilt, clip.text, clip.voice, copy, usual))
            said += [gates.facts_of(ears, take.heard, clip.text, clip.voice, _samples(speech), usual, speech)
                     for take, (speech, _) in zip(rows[-1].takes, attempts, strict=True)]  # fmt: skip
        log.info("measured %d of %d clips", len(rows), len(clips))
    about = {**_about(clips, ears), "seed": seed, "sampling": as_dict(replace(sampling, seed=seed)),
             "speaks_as": stand_in(tts, clips, voice), "batch_size": batch_size,
             **tts.provenance["model"], "versions": tts.provenance["versions"]}  # fmt: skip
    found = gates.judge(said, gates.learn(recorded, usual, ears))
    report = Report(rows, about, ears.domain is not None, sounds=sounds, gates=found.as_dict())
    report.missing.update(missing(report, ears))
    return report


def _about(clips: Sequence[Recording], ears: Ears) -> dict[str, Any]:
    asked = [word for clip in clips for word in words(clip.text)]
    known = getattr(ears.domain, "vocabulary", None)
    return {
        "words": len(asked),
        "words_known_domain": None if known is None else sum(word in known for word in asked),
        "tags": sum(len(find_tags(clip.text)) for clip in clips),
        "recogniser": ears.recogniser.name if ears.recogniser else None,
        "recogniser_domain": ears.domain.name if ears.domain else None,
        "detector": list(ears.detector.KNOWN_TAGS) if ears.detector else None,
    }


def _samples(speech: Speech | NoSpeech) -> np.ndarray:
    return speech.samples if isinstance(speech, Speech) else np.zeros(0, np.float32)


def prompt_voice(tts: OrpheusInference, clip_voice: str | None, voice: str | None) -> str | None:
    """The voice to ask for: None, the text alone, for an adapter that was trained without names.

    A model that lacks the clips' voice speaks as its own first one, if nobody asked for another: it can do no more.
    """
    own = tts.trained_voices if tts.has_adapter else tts.base_voices
    if tts.has_adapter and not own:
        return None
    if voice or not own or clip_voice in tts.voices or (tts.has_adapter and clip_voice is None):
        return voice or clip_voice
    return own[0]


def stand_in(tts: OrpheusInference, clips: Sequence[Recording], voice: str | None) -> str | None:
    """The voice that speaks in place of one that the model lacks; None: it has what the clips ask for."""
    asked = {prompt_voice(tts, clip.voice, voice) for clip in clips if not voice} - {clip.voice for clip in clips}
    return next((name for name in asked if name), None)


Attempt = tuple[Speech | NoSpeech, float]  # how a text was spoken, and its share of the work in seconds


def _speak(tts: OrpheusInference, batch: Sequence[Target], voice: str | None,
           sampling: SamplingOptions) -> list[Attempt]:  # fmt: skip
    """The texts of clips of one voice, all at once."""
    began = time.perf_counter()
    spoken = tts.attempt(
        [target.clip.text for target in batch], prompt_voice(tts, batch[0].clip.voice, voice), sampling
    )
    work_s = (time.perf_counter() - began) / len(batch)
    return [(speech, work_s) for speech in spoken]


def _batches(clips: Sequence[Target], size: int) -> Iterator[list[Target]]:
    """The clips in order, at most `size` at a time and of one voice."""
    for _, same in groupby(clips, key=lambda target: target.clip.voice):
        part = list(same)
        yield from (part[start : start + size] for start in range(0, len(part), size))


def _save(attempts: Sequence[Attempt], folder: Path, clip: int, overwrite: bool) -> None:
    for take, (speech, _) in enumerate(attempts):
        if isinstance(speech, Speech):
            speech.save(folder / f"clip_{clip}_take_{take}.wav", overwrite=overwrite)
