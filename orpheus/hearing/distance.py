"""How far apart two sounds of the same words are: mel-cepstral distance along the best alignment in time."""

from __future__ import annotations

import numpy as np

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.errors import MissingPackage

BANDS = 80
COEFFICIENTS = 24  # of the cepstrum: the shape of the mouth. Higher ones are the voice's pitch; c0 is the level
WINDOW, STEP = 1024, 240  # samples: 43 ms, each 10 ms
RANGE_DB = 60.0  # below the loudest band of a clip there is nothing to compare
TO_DB = 10 / np.log(10) * np.sqrt(2)


def mel_cepstral_db(one: np.ndarray, other: np.ndarray) -> float | None:
    """The mel-cepstral distance (Kubichek 1993) of two clips, float32 [n] and [m] at 24 kHz, in dB.

    The mean over the path of dynamic time warping; neither level nor tempo counts. 0: equal; the embedded
    base has 2.7 from its recordings, natural voices more. None if one of the clips is silent throughout.
    """
    try:
        import librosa
    except ImportError as error:
        raise MissingPackage("librosa", "the mel-cepstral distance") from error
    if not (np.any(one) and np.any(other)):
        return None
    costs, path = librosa.sequence.dtw(mel_cepstrum(one), mel_cepstrum(other), metric="euclidean")
    return float(TO_DB * costs[-1, -1] / len(path))


def mel_cepstrum(samples: np.ndarray) -> np.ndarray:
    """The mel cepstrum of a clip, float32 [n] at 24 kHz, without c0: [COEFFICIENTS, frames].

    ln |S| = c0 + sum c_k cos(k w), as in SPTK, so that the distance is the root mean square of the spectra's, in dB.
    """
    import librosa

    power = librosa.feature.melspectrogram(y=np.asarray(samples, np.float32), sr=SAMPLE_RATE_HZ, n_fft=WINDOW,
                                           hop_length=STEP, n_mels=BANDS)  # fmt: skip
    amplitude = 0.5 * np.log(np.maximum(power, power.max() * 10 ** (-RANGE_DB / 10)))
    cepstrum = librosa.feature.mfcc(S=amplitude, n_mfcc=1 + COEFFICIENTS, dct_type=2, norm="ortho")
    return np.sqrt(2 / BANDS) * cepstrum[1:]
