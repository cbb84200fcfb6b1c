"""Findings at a clip's edges and in its pauses: silence, ends cut in mid-word, digital zeros."""

from __future__ import annotations

from orpheus.data.checkup.finding import Check, Measured, Voice

EDGE_S, PAUSE_S = 0.9, 1.0  # of silence: too much for any voice
FAR_EDGE_S = 0.75  # where the voice usually has far less
KEPT_S = 0.2  # of silence, when it is trimmed
CUT_DB, FAR_CUT_DB = -9.0, -28.0  # of the last 30 ms against the speech: for any voice; where it usually has far less
MANY = 0.15  # share of a voice's clips
OVER_NOISE_DB = 12.0  # else it is noise that is loud at the edge
ZEROS_S, ALL_ZEROS_S = 0.045, 0.1


def edge_silence(clip: Measured, voice: Voice) -> str | None:
    """Silence before the first or after the last sound, by the clip's own noise."""
    before_s, after_s = clip.sound.before_s, clip.sound.after_s
    far_before = voice.far("before_s", 0.08)[1]
    far_after = voice.far("after_s", 0.08)[1]
    if before_s > min(EDGE_S, max(far_before, FAR_EDGE_S)) or after_s > min(EDGE_S, max(far_after, FAR_EDGE_S)):
        return f"{before_s:.1f} s before and {after_s:.1f} s after the speech"
    return None


def pause(clip: Measured, voice: Voice) -> str | None:
    """A long pause inside."""
    return f"{clip.sound.pause_s:.1f} s of pause inside" if clip.sound.pause_s > PAUSE_S else None


def cut(clip: Measured, voice: Voice) -> str | None:
    """Full sound at the very edge: the word goes on beyond it."""
    sound = clip.sound
    over_noise = sound.noise_db + OVER_NOISE_DB - sound.speech_db
    found = []
    for place, name in (("begins", "start_level"), ("ends", "end_level")):
        level, (_, far) = getattr(sound, name), voice.far(name, 4.0)
        # Where many of the voice's clips begin (or end) so, one that does says nothing.
        if level > max(min(far, CUT_DB), FAR_CUT_DB, over_noise) and voice.share_over(name, CUT_DB) < MANY:
            found.append(f"{place} at {level:.0f} dB against the speech")
    return "; ".join(found) or None


def digital_zeros(clip: Measured, voice: Voice) -> str | None:
    """Time in which nothing at all changes: a gate, or silence made by a program."""
    if clip.sound.zeros_s > ZEROS_S and clip.sound.all_zeros_s > ALL_ZEROS_S:
        return f"{clip.sound.all_zeros_s:.2f} s of digital zeros, {clip.sound.zeros_s:.2f} s at a time"
    return None


def trimmed_s(clip: Measured) -> float:
    """What trimming takes."""
    return max(clip.sound.before_s - KEPT_S, 0) + max(clip.sound.after_s - KEPT_S, 0)


CHECKS = (
    Check("edge silence", "Silence at the edges", "Trim it evenly, to 0.2 s: a model learns it, and not to stop.",
          edge_silence, trimmed_s),
    Check("pause", "A long pause inside", "Shorten the pause, or split the clip there.", pause,
          lambda clip: max(clip.sound.pause_s - KEPT_S, 0)),
    Check("cut", "Cut in mid-word", "Cut it anew from the source, at a pause; or leave it out.", cut,
          explains=frozenset({"pace"})),
    Check("digital zeros", "Digital zeros", "Turn the gate off, or fill in room noise, 60 dB below the speech: zeros "
          "teach the model not to stop.", digital_zeros, lambda clip: 0.0),
)  # fmt: skip
