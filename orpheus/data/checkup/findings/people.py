"""Findings across clips: speakers that don't belong, and one recording under several texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.data.checkup.finding import Check, Measured, Named, Voice
from orpheus.data.checkup.findings.texts import likeness

SPOKEN_S, STRANGE = (0.8, 1.2, 1.6, 2.2), (0.60, 0.66, 0.73, 0.76)  # a stranger is less alike; short clips say less
APART = 0.12  # below the voice's own median: there are lively voices

SAME_DB = 1.2  # mean difference of two fingerprints
SAME_WAVE = 0.8  # correlation of the waves where they fit best
SAME_LENGTH_S = 0.6
SURE = 0.05  # by how much one text must fit better
COMPARED_HZ = 4000


def stranger(clip: Measured, voice: Voice) -> str | None:
    """Another person speaks."""
    alike = voice.likeness.get(id(clip))
    if alike is None or len(voice.clips) < 5:
        return None
    usual = float(np.median(list(voice.likeness.values())))
    limit = min(float(np.interp(clip.sound.spoken_s, SPOKEN_S, STRANGE)), usual - APART)
    return f"likeness to the voice {alike:.2f}, usual are {usual:.2f}" if alike < limit else None


CHECKS = (
    Check("other speaker", "Another speaker", "Leave it out, or give it its own voice in the voice column.", stranger,
          explains=frozenset({"narrow band", "loudness", "cut"})),
)  # fmt: skip
SAME = Check("same recording", "One recording under two texts", "Keep the text that is said; leave the other row out.",
             lambda clip, voice: None)  # fmt: skip
SAME_TEXT = Check("twice", "The same recording and text twice", "Leave one out: it counts twice.",
                  lambda clip, voice: None, severity="note")  # fmt: skip


def same_recordings(clips: Sequence[Measured], voice: Voice) -> tuple[list[Named], list[Named]]:
    """Recordings that are in the data set more than once, also softer or shifted: with other texts, and with the same.

    Of two that differ in their texts the one is named whose text fits the sound less well; both, where that is not
    sure.
    """
    other, same = [], []
    for one, two in _pairs(clips):
        if one.text.casefold() == two.text.casefold():
            same.append(Named(two, f"the same as {one.name}", two.seconds))
            continue
        misfits = _misfit(one, voice), _misfit(two, voice)
        worse, better = (one, two) if misfits[0] > misfits[1] else (two, one)
        unsure = abs(misfits[0] - misfits[1]) < SURE
        for bad, good in ((worse, better), (better, worse))[: 1 + unsure]:
            detail = f"the same recording as {good.name}, whose text is “{good.text[:80]}”"
            other.append(Named(bad, detail, 0.0 if bad is better else bad.seconds))
    return other, same


def _misfit(clip: Measured, voice: Voice) -> float:
    """How badly a text fits its sound: by what was heard, else by how long it takes."""
    if clip.heard is not None:
        return 2 - likeness(clip.text.lower(), clip.heard.lower())
    return abs(float(np.log(voice.paces.get(id(clip), 1.0))))


def _pairs(clips: Sequence[Measured]) -> list[tuple[Measured, Measured]]:
    """Pairs with one sound: first by fingerprint, then by the wave itself."""
    if not clips:
        return []
    prints = np.array([clip.sound.fingerprint_db for clip in clips], np.float32)
    spoken = np.array([clip.sound.spoken_s for clip in clips])
    found = []
    for i in range(len(clips) - 1):
        near = np.abs(prints[i + 1 :] - prints[i]).mean(axis=1) < SAME_DB
        near &= np.abs(spoken[i + 1 :] - spoken[i]) < SAME_LENGTH_S
        for j in map(int, np.flatnonzero(near) + i + 1):
            if clips[i].key == clips[j].key or _one_wave(clips[i], clips[j]):
                found.append((clips[i], clips[j]))
    return found


def _one_wave(one: Measured, two: Measured) -> bool:
    import soxr

    waves = [soxr.resample(clip.record.samples(), SAMPLE_RATE_HZ, COMPARED_HZ) for clip in (one, two)]
    size = 1 << int(np.ceil(np.log2(sum(map(len, waves)))))
    first, second = (np.fft.rfft(wave, size) for wave in waves)
    likest = np.abs(np.fft.irfft(first * second.conj(), size)).max()
    return bool(likest > SAME_WAVE * np.linalg.norm(waves[0]) * np.linalg.norm(waves[1]))
