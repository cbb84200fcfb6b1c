"""What is true of the whole voice: lengths, tags, edges, what a codec loses, and how long a training takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.codec.snac import SnacCodec
from orpheus.config import Preset
from orpheus.data.checkup import sounds
from orpheus.data.checkup.examine import CheckUp
from orpheus.data.checkup.findings.texts import deaf
from orpheus.data.oddities import voice_warnings
from orpheus.format.prompt import tag_census
from orpheus.hearing.metrics import word_errors, words
from orpheus.hearing.recognise import Recogniser

ENOUGH_TAGS = 100  # of each tag: Unsloth's and Canopy's advice for a new one
FEW_CLIPS, GOOD_CLIPS = 50, 300  # from where training begins to work, and where it is good
LONG_S, SHORT_S = 15.0, 1.0  # clips over 15 s end less surely; under 1 s they teach little but their edges
MANY = 0.1  # share of such clips that is worth a word
ABRUPT_DB = -15.0  # of the first or last 30 ms, on the average
SAMPLE = 8  # clips that the codec is tried with
TOY_DB, TOY_ERRORS = 6.0, 0.25  # what a codec loses when words are lost: spectral distance, more wrong words
T4_SECONDS = (
    1105 / 10800
)  # for a second of recordings and epoch: 18 min 25 s for 3 h, 4 bit, as Unsloth's notebook says
CPU_SECONDS = 0.11  # the same for the embedded base, two cores: most of the 3 min 15 s of `make demo`, 6.3 min x 4
CPU_GIB, T4_GB = 3.5, 16


class Fact(NamedTuple):
    """One line about the whole voice. `state`: 'note' is worth a thought."""

    state: str  # ok, note
    name: str
    text: str


def facts(up: CheckUp, preset: Preset) -> Iterator[Fact]:
    """Everything that needs no further listening."""
    fit = up.fit
    total_s = sum(clip.seconds for clip in fit)
    named = {id(named.clip) for finding in up.faults() for named in finding.clips}
    clean = len(up.clips) - len(named)
    yield Fact("ok", "clips", f"{len(up.clips)} from {up.source.name}, {total_s / 60:.1f} min; {clean} without a fault")
    if not fit:
        return
    few = len(fit) < GOOD_CLIPS
    yield Fact("note" if few else "ok", "amount", f"{len(fit)} clips to train on; {FEW_CLIPS} begin to "
               f"work, {GOOD_CLIPS} of a speaker are good")  # fmt: skip
    yield _lengths([clip.seconds for clip in fit])
    yield from (Fact("note", "voices", line) for line in voice_warnings([clip.voice for clip in fit if clip.voice]))
    yield _tags([clip.text for clip in fit])
    for voice in up.voices:
        of = f" of {voice.name}" if voice.name else ""
        for place, level in (("begin", voice.usual("start_level")), ("end", voice.usual("end_level"))):
            if level > ABRUPT_DB:
                yield Fact("note", "edges", f"the clips{of} {place} abruptly, at {level:.0f} dB against the speech: "
                           "leave 0.1 s of room before and after each")  # fmt: skip
        band_hz = np.exp(voice.usual("band"))
        if band_hz < 0.75 * SAMPLE_RATE_HZ / 2:
            yield Fact(
                "note", "band", f"the clips{of} hold nothing above {band_hz:.0f} Hz: the voice will sound as muffled"
            )
        if deaf(voice):
            yield Fact("note", "transcripts", f"the recogniser understands nothing{of}: another --language "
                       "or --whisper-model? Texts were not compared")  # fmt: skip
        elif (rate := _error_rate([(c.text, c.heard, voice.language) for c in voice.clips if c.heard])) is not None:
            yield Fact("ok", "transcripts", f"the recogniser gets {rate:.0%} of the words{of} wrong, in the middle")
    yield _training(total_s, max(clip.seconds for clip in fit), preset)


def _lengths(seconds: Sequence[float]) -> Fact:
    many_long = np.mean([s > LONG_S for s in seconds]) > MANY
    many_short = np.mean([s < SHORT_S for s in seconds]) > MANY
    spread = np.percentile(seconds, [0, 10, 50, 90, 100])
    text = "{:.1f} to {:.1f} s, most {:.1f} to {:.1f}, half under {:.1f}".format(*spread[[0, 4, 1, 3, 2]])
    if many_long:
        text += f"; many over {LONG_S:g} s: split them, speech that long ends less surely"
    if many_short:
        text += f"; many under {SHORT_S:g} s: they teach little, and mix in longer ones"
    return Fact("note" if many_long or many_short else "ok", "lengths", text)


def _tags(texts: Sequence[str]) -> Fact:
    counts = tag_census(texts)
    if not counts:
        return Fact("ok", "tags", "none in the texts; those of the base may fade as it is trained")
    few = {tag for tag, count in counts.items() if count <= ENOUGH_TAGS}
    text = ", ".join(f"{count} <{tag}>" for tag, count in counts.most_common())
    rule = f"; a tag that the base doesn't know takes more than {ENOUGH_TAGS}" if few else ""
    return Fact("note" if few else "ok", "tags", text + rule)


def _error_rate(pairs: Sequence[tuple[str, str | None, str]]) -> float | None:
    rates = [word_errors(text, heard, language) / max(len(words(text, language)), 1)
             for text, heard, language in pairs if heard]  # fmt: skip
    return float(np.median(rates)) if rates else None


def _training(total_s: float, longest_s: float, preset: Preset) -> Fact:
    epochs = preset.epochs or 1
    if preset.name == "tiny":
        minutes = total_s * epochs * CPU_SECONDS / 60
        return Fact("ok", "training", f"{epochs:g} epochs of the embedded base take {minutes:.0f} min on two cores, "
                    f"and {CPU_GIB:g} GiB of memory")  # fmt: skip
    minutes = total_s * T4_SECONDS / 60
    return Fact("ok", "training", f"an epoch of Orpheus-3B takes about {minutes:.0f} min on a T4 in 4 bit and fits its "
                f"{T4_GB} GB; the longest clip, {longest_s:.1f} s, sets the peak")  # fmt: skip


# ---- what the codec loses ----


def codec_loss(up: CheckUp, codec: SnacCodec, name: str, recogniser: Recogniser | None) -> Fact:
    """What no training wins back: the spectral distance of decoded clips, and the words that are lost in them."""
    bad = {id(named.clip) for finding in up.faults() for named in finding.clips}
    tried = sorted(up.fit, key=lambda clip: (id(clip) in bad, clip.key))[:SAMPLE]  # the good ones first
    distances, before, after = [], [], []
    for clip in tried:
        samples = clip.record.samples()
        decoded = codec.decode(codec.encode([samples])[0])[: len(samples)]
        distances.append(spectral_distance_db(samples, decoded))
        if recogniser and clip.heard is not None:
            language = recogniser.language
            before.append(word_errors(clip.text, clip.heard, language) / max(len(words(clip.text, language)), 1))
            heard = recogniser.transcribe(decoded)
            after.append(word_errors(clip.text, heard, language) / max(len(words(clip.text, language)), 1))
    distance = float(np.median(distances))
    text = f"{name} changes the spectrum by {distance:.1f} dB"
    lost = float(np.mean(np.minimum(after, 1)) - np.mean(np.minimum(before, 1))) if after else 0.0
    if after:
        text += f"; the recogniser gets {np.mean(np.minimum(after, 1)):.0%} of the words wrong after it, before it " \
                f"{np.mean(np.minimum(before, 1)):.0%}"  # fmt: skip
    if lost > TOY_ERRORS or distance > TOY_DB:
        return Fact("note", "codec", f"{text}. Much of this speech is unintelligible after it, and no training wins "
                    "that back: with recordings of people this preset is a toy")  # fmt: skip
    return Fact("ok", "codec", text)


def spectral_distance_db(one: np.ndarray, other: np.ndarray) -> float:
    """How far two sounds of one length are apart: the mean difference of their bands' levels where there is sound."""
    a, b = (sounds.bands_db(samples) for samples in (one, other))
    length = min(len(a), len(b))
    a, b = a[:length], b[:length]
    top = a.max()
    audible = np.maximum(a, b) > top - 50
    return float(np.abs(np.maximum(a, top - 60) - np.maximum(b, top - 60))[audible].mean()) if audible.any() else 0.0


def mix(up: CheckUp) -> Counter[int]:
    """How many clips last so many whole seconds."""
    return Counter(int(clip.seconds) for clip in up.fit)
