"""Speech that leaves while it is made: into a WAV file that can be played at any moment, or as raw PCM into a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from orpheus.audio.recordings import WavStream, pcm16, refuse_existing
from orpheus.audio.schedule import grouped
from orpheus.config import ReadingOptions, SamplingOptions, VoiceOptions
from orpheus.errors import UserError
from orpheus.model.provenance import write_json
from orpheus.speak.inference import OrpheusInference, load_voice
from orpheus.speak.names import reserved_paths
from orpheus.speak.reading import Reading
from orpheus.speak.references import Reference
from orpheus.speak.speech import remove_stale

LOG_EVERY_S = 30.0  # where stderr is no terminal


def speak_aloud(
    texts: Sequence[str],
    model: VoiceOptions,
    voice: str | None,
    sampling: SamplingOptions,
    reading: ReadingOptions,
    *,
    folder: Path,
    overwrite: bool,
    pcm: bool,
    references: Sequence[Reference] = (),
) -> None:
    """`python inference.py --stream`: load the voice, speak each text as it is made, and say how it went."""
    out = raw_stdout() if pcm else None
    with redirect_stdout(sys.stderr if pcm else sys.stdout):  # nothing but samples goes there
        tts = load_voice(model)
        for spoken, path in read_aloud(tts, texts, voice, sampling, reading, folder=folder, overwrite=overwrite,
                                       pcm=out, references=references):  # fmt: skip
            print(f"{path or 'standard output'}  {facts(spoken)}: {spoken.texts[0][:60]}")


def read_aloud(
    tts: OrpheusInference,
    texts: Sequence[str],
    voice: str | None,
    sampling: SamplingOptions,
    reading: ReadingOptions,
    *,
    folder: Path,
    overwrite: bool = False,
    pcm: BinaryIO | None = None,
    references: Sequence[Reference] = (),
) -> Iterator[tuple[Reading, Path | None]]:
    """Speak texts of any length one after the other, each as it is made; yields each finished one and its file.

    Into output_<k>.wav and .json in `folder`; or all into `pcm`, as 16-bit little-endian samples, mono, 24 kHz, which
    ends it without an error when nobody reads there any more. With a seed, text i draws from seed + i. All texts are
    checked first. Whatever ends it, Ctrl-C too: what was written is a whole WAV, and its .json says how far it came.
    """
    seeds = [None if sampling.seed is None else sampling.seed + i for i in range(len(texts))]
    readings = [
        tts.read(text, voice, replace(sampling, seed=seed), reading, references=references)
        for text, seed in zip(texts, seeds, strict=True)
    ]
    if pcm is not None:
        for spoken in readings:
            if not to_pcm(spoken, pcm):
                return
            yield spoken, None
        return
    with reserved_paths(folder, len(texts), overwrite) as paths:
        for spoken, path in zip(readings, paths, strict=True):
            to_wav(spoken, path, overwrite)
            yield spoken, path


def to_wav(reading: Reading, path: Path, overwrite: bool = False) -> None:
    """Write what is read as it comes, and a .json beside it at the end. UserError: one of them exists already."""
    described = path.with_suffix(".json")
    refuse_existing(described, overwrite)
    with closing(reading), _Bar(reading) as bar:
        try:
            with WavStream(path, overwrite=overwrite, comment=reading.note) as wav:
                for chunk in grouped(reading):
                    wav.write(chunk)
                    bar.show()
        finally:
            if reading.samples:
                remove_stale(path)
                write_json(described, reading.describe())


def to_pcm(reading: Reading, out: BinaryIO) -> bool:
    """Write what is read as raw PCM as it comes; False: the other end of the pipe is closed, and speaking stopped."""
    with closing(reading), _Bar(reading) as bar:
        for chunk in grouped(reading):
            try:
                out.write(pcm16(chunk))
                out.flush()
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())  # else Python complains when it exits
                return False
            bar.show()
    return True


def raw_stdout() -> BinaryIO:
    """Standard output for bytes. UserError for a terminal, which would be confused by them."""
    if sys.stdout.isatty():
        raise UserError("--pcm writes raw samples, and standard output is a terminal: pipe it into a player, like  "
                        "| aplay -f S16_LE -r 24000")  # fmt: skip
    return sys.stdout.buffer


def facts(reading: Reading) -> str:
    """One line on how it went."""
    first_s, length_s = reading.first_audio_s or 0.0, max(reading.duration_s, 1e-9)
    found = sum(bool(piece.guard) for piece in reading.pieces)
    return (
        f"{reading.duration_s:.2f} s, first audio after {first_s:.2f} s, real-time factor "
        f"{reading.total_s / length_s:.2f}, {reading.tokens / max(reading.total_s, 1e-9):.0f} tokens/s, "
        f"{len(reading.pieces)} of {len(reading.texts)} pieces, seed {reading.seed}"
        + (f", the guard intervened in {found}" if found else "")
    )


class _Bar:
    """Pieces that are finished, on stderr; nothing for a text of one piece."""

    def __init__(self, reading: Reading) -> None:
        from tqdm import tqdm

        self.reading = reading
        often: dict[str, Any] = {} if sys.stderr.isatty() else {"mininterval": LOG_EVERY_S, "maxinterval": LOG_EVERY_S}
        alone = len(reading.texts) == 1
        self.bar: Any = tqdm(total=len(reading.texts), desc="reading", unit="piece", disable=alone, **often)

    def show(self) -> None:
        self.bar.set_postfix_str(f"{self.reading.duration_s:.0f} s of speech", refresh=False)
        self.bar.update(len(self.reading.pieces) - self.bar.n)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self.show()
        self.bar.close()
