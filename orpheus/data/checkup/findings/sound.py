"""Findings in the sound itself: hum, noise, channels, levels, clipping, bandwidth, a wrong rate."""

from __future__ import annotations

import numpy as np

from orpheus.data.checkup import sounds
from orpheus.data.checkup.finding import Check, Measured, Voice

MAINS_HZ = np.arange(48.0, 62.1, 0.5)
HARMONICS = 12
TONE_STEP_HZ = 3.4  # how exactly a tone's frequency is known
AUDIBLE_DB = -45.0  # of a tone against the speech
STANDS_OUT_DB, COMB_DB = 20.0, 34.0  # of one tone; of the three best harmonics of the mains together (each 25 at most)

NOISY_DB, FAR_NOISY_DB = 28.0, 33.0  # dynamics: of any noisy clip; of one whose voice is usually far cleaner
LEAST_SNR_DB = 17.0  # rumble leaves the dynamics of the upper bands alone

DEAD_DB, OPPOSITE = 25.0, -0.5
FLAT, CROWD = 1e-3, 3.5
QUIET_DB, LOUDNESS_DB = -42.0, 12.0
NARROWER, WIDE_HZ = 0.29, 9200.0  # by a quarter; wider is as good as any

STRETCH, STRETCH_GAIN_DB = 0.13, 1.5  # of the spectrum: beyond what differs between a voice's clips
HINT_GAIN_DB = 0.25  # where the file's own rate is unlike the others'
PITCH_AGREES = 0.25


def hum(clip: Measured, voice: Voice) -> str | None:
    """Tones that never stop, as mains and machines make them."""
    tones = [(hz, level - clip.sound.speech_db, out) for hz, level, out in clip.sound.tones]
    tones = [tone for tone in tones if tone[1] > AUDIBLE_DB]
    if not tones:
        return None
    hz, level_db, out = max(tones, key=lambda tone: tone[2])
    comb, base_hz = max((_comb(tones, base_hz), base_hz) for base_hz in MAINS_HZ)
    if comb > COMB_DB:
        mains = 50 if base_hz < 55 else 60
        return f"harmonics of about {mains} Hz, up to {max(t[1] for t in tones):.0f} dB against the speech"
    return f"a steady tone at {hz:.0f} Hz, {level_db:.0f} dB against the speech" if out > STANDS_OUT_DB else None


def _comb(tones: list[tuple[float, float, float]], base_hz: float) -> float:
    best = [max((min(out, 25.0) for hz, _, out in tones if abs(hz - k * base_hz) < TONE_STEP_HZ), default=0.0)
            for k in range(1, HARMONICS + 1)]  # fmt: skip
    return sum(sorted(best)[-3:])


def noise(clip: Measured, voice: Voice) -> str | None:
    """Speech too little above the noise in its pauses."""
    low, _ = voice.far("dynamics_db", 2.0)
    if clip.sound.dynamics_db < max(min(low, FAR_NOISY_DB), NOISY_DB) or clip.sound.snr_db < LEAST_SNR_DB:
        usual = voice.usual("snr_db")
        return f"the speech is {clip.sound.snr_db:.0f} dB above the noise, usual are {usual:.0f}"
    return None


def dead_channel(clip: Measured, voice: Voice) -> str | None:
    """A channel without the voice."""
    levels = clip.sound.channels_db
    if len(levels) > 1 and max(levels) - min(levels) > DEAD_DB:
        return "the channels have " + ", ".join(f"{max(level, -120):.0f}" for level in levels) + " dB"
    return next((detail for kind, detail in clip.sound.noted if kind == "dead channel"), None)


def opposite(clip: Measured, voice: Voice) -> str | None:
    """Two channels that partly cancel out."""
    if clip.sound.correlation < OPPOSITE:
        return f"the channels' correlation is {clip.sound.correlation:.2f}: they cancel out when they are mixed"
    return None


def clipped(clip: Measured, voice: Voice) -> str | None:
    """Tops cut off, at full scale or below."""
    sound = clip.sound
    full = any(kind == "clipped" for kind, _ in sound.noted)
    if not (full or sound.flat > FLAT or sound.crowd > CROWD):
        return None
    at_db = 20 * np.log10(max(sound.peak, 1e-6))
    lowered = " and was lowered afterwards" if at_db < -1 else ""
    return f"cut off at {min(at_db, 0):.1f} dB{lowered}; {100 * sound.flat:.1f} % of it in flat tops"


def dc_offset(clip: Measured, voice: Voice) -> str | None:
    """A mean that is not zero."""
    return next((detail for kind, detail in clip.sound.noted if kind == "dc offset"), None)


def loudness(clip: Measured, voice: Voice) -> str | None:
    """Far louder or softer than the voice, or very soft."""
    usual = voice.usual("speech_db")
    apart = clip.sound.speech_db - usual
    if abs(apart) > LOUDNESS_DB or clip.sound.speech_db < QUIET_DB:
        return f"the speech is at {clip.sound.speech_db:.0f} dB, usual are {usual:.0f}"
    return None


def narrow_band(clip: Measured, voice: Voice) -> str | None:
    """Higher frequencies missing that the other clips have; or telephone quality where that is no property of all."""
    low, _ = voice.far("band", 0.04)
    if clip.sound.band < min(low, voice.usual("band") - NARROWER) and clip.sound.band < np.log(WIDE_HZ):
        return (
            f"nothing above {np.exp(clip.sound.band):.0f} Hz, the other clips reach {np.exp(voice.usual('band')):.0f}"
        )
    return None


def wrong_rate(clip: Measured, voice: Voice) -> str | None:
    """Played too fast or too slow: spectrum and pitch are raised or lowered together."""
    if len(voice.clips) < 5:
        return None
    raised, gain_db = sounds.stretch(np.array(clip.sound.spectrum_db), voice.spectrum_db)
    pitch = np.log(clip.sound.pitch_hz / voice.usual("pitch_hz")) if clip.sound.pitch_hz else np.nan
    agrees = not np.isfinite(pitch) or abs(pitch - raised) < PITCH_AGREES or _octave(pitch, raised)
    if abs(raised) > STRETCH and gain_db > STRETCH_GAIN_DB and (agrees or gain_db > 3 * STRETCH_GAIN_DB):
        return f"{_way(raised)} by a factor of about {np.exp(abs(raised)):.2f}: {_said(clip, voice)}"
    if voice.rate_hz and clip.sound.rate_hz != voice.rate_hz:
        wrong = np.log(clip.sound.rate_hz / voice.rate_hz)
        both = abs(raised - wrong) < 0.09 and gain_db > HINT_GAIN_DB
        if both and np.isfinite(pitch) and abs(pitch - wrong) < 0.12:
            return f"{_way(wrong)} by a factor of {np.exp(abs(wrong)):.2f}: {_said(clip, voice)}"
    return None


def _octave(pitch: float, raised: float) -> bool:
    """Beyond its range the pitch tracker finds half or a third."""
    return raised > 0.5 and any(abs(pitch + np.log(k) - raised) < PITCH_AGREES for k in (2, 3))


def _way(raised: float) -> str:
    return "too fast and too high" if raised > 0 else "too slow and too low"


def _said(clip: Measured, voice: Voice) -> str:
    usual = f", the others {voice.rate_hz}" if voice.rate_hz and voice.rate_hz != clip.sound.rate_hz else ""
    return f"the file says {clip.sound.rate_hz} Hz{usual}"


def listeners(clip: Measured, voice: Voice) -> str | None:
    """DNSMOS far below the voice's."""
    low, _ = voice.far("mos", 0.2)
    if clip.mos is not None and clip.mos < min(low, 2.5):
        return f"DNSMOS {clip.mos:.1f}"
    return None


SPOILT = frozenset({"other speaker", "noise", "hum", "narrow band", "listeners"})
CHECKS = (
    Check("wrong rate", "Played at a wrong rate", "Write the true rate into the file, or leave it out.",
          wrong_rate, lambda clip: 0.0,
          explains=frozenset({"other speaker", "transcript", "pace", "narrow band", "cut", "noise", "listeners"})),
    Check("opposite phase", "Channels in opposite phase", "Invert one of them, or export one alone.", opposite,
          lambda clip: 0.0, explains=SPOILT),
    Check("clipped", "Clipped", "Record again at a lower level, or leave it out; lowering it afterwards mends nothing.",
          clipped, explains=frozenset({"other speaker", "listeners", "noise", "loudness", "dc offset"})),
    Check("hum", "Hum or a steady tone", "Notch it out (sox: bandreject), or record again without the device.",
          hum, lambda clip: 0.0, explains=frozenset({"noise", "listeners"})),
    Check("noise", "Noise", "Leave it out, or clean it; a model learns the noise too.", noise,
          explains=frozenset({"other speaker", "listeners", "cut", "transcript"})),
    Check("dead channel", "A channel without the voice", "Export the other channel alone, in mono.", dead_channel,
          lambda clip: 0.0),
    Check("dc offset", "An offset", "High-pass at 40 Hz.", dc_offset, lambda clip: 0.0),
    Check("loudness", "Far from the usual loudness", "Set the loudness of all clips alike.", loudness,
          lambda clip: 0.0),
    Check("narrow band", "High frequencies are missing", "Leave it out: it can't be had back.", narrow_band,
          explains=frozenset({"other speaker", "listeners"})),
    Check("listeners", "Listeners would mark it down", "Listen to it.", listeners, severity="note"),
)  # fmt: skip
