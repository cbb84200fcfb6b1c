"""Real speech with transcripts, from Debian packages: professional speakers of telephone prompts, 16 kHz.

    python -m tests.support.real_recordings [en fr it es ru]      needs apt-get and dpkg-deb

They are fetched once into .cache/real/LANGUAGE (clips/*.wav, metadata.csv) and never committed: the English ones
(Allison Smith, Digium) are under CC BY-SA 3.0. Some texts are stage directions ("[sound of ...]"), as a real corpus
has them.
"""

from __future__ import annotations

import csv
import gzip
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from orpheus.audio import recordings
from orpheus.data.raw.texts import likeness

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "real"
PACKAGE = "asterisk-core-sounds-"
RATE_HZ = 16000
OURS_HZ = 24000
EDGE_S = 0.35  # a clip's own silence at its edges


def corpus(language: str) -> Path | None:
    """The folder of a language's recordings, if they were fetched (`make test-real`)."""
    folder = CACHE / language
    return folder if (folder / "metadata.csv").is_file() else None


def fetch(language: str) -> Path:
    """Fetch a language's recordings, unless they are there."""
    if there := corpus(language):
        return there
    listing = next(_unpacked(f"{PACKAGE}{language}").rglob("core-sounds-*.txt.gz"))
    with gzip.open(listing, "rt", encoding="utf-8", errors="replace") as file:
        lines = [line.split(":", 1) for line in file if ":" in line and not line.startswith(";")]
    texts = {name.strip(): text.strip() for name, text in lines}
    folder, rows = CACHE / language, []
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    for path in sorted(_unpacked(f"{PACKAGE}{language}-g722").rglob("*.g722")):
        parts = path.with_suffix("").parts
        key = next((name for n in (3, 2, 1) if (name := "/".join(parts[-n:])) in texts), None)
        if key is not None and path.stat().st_size > 1:
            clip = f"clips/{key.replace('/', '_')}.wav"
            _decode(path, folder / clip)
            rows.append((clip, texts[key]))
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as table:  # last: a fetch cut short is none
        csv.writer(table).writerows([("file_name", "text"), *rows])
    return folder


def _unpacked(package: str) -> Path:
    """A Debian package's files, without installing it."""
    folder = CACHE / "packages" / package
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-q", package], cwd=folder.parent, check=True)
        subprocess.run(["dpkg-deb", "-x", next(folder.parent.glob(f"{package}_*.deb")), folder], check=True)
    return folder


def _decode(source: Path, target: Path) -> None:
    """A G.722 file as a WAV of 16 kHz."""
    import av
    import soundfile

    with av.open(str(source), format="g722") as file:
        samples = np.concatenate([frame.to_ndarray().reshape(-1) for frame in file.decode(audio=0)])
    soundfile.write(target, samples, RATE_HZ)


# ---- a long recording made of them ----


@dataclass(frozen=True)
class Place:
    """A clip in a long recording: its samples `start` to `end` at 24 kHz, and what is said in it."""

    start: int
    end: int
    text: str


def joined(folder: Path, seconds: float, seed: int, pause_s: tuple[float, float] = (0.6, 1.6),
           noise: float = 5e-4) -> tuple[np.ndarray, list[Place]]:  # fmt: skip
    """Clips of a corpus one after the other, each once, with room noise under and between them; float32 [n], 24 kHz.

    Clips whose text is a stage direction are left out.
    """
    random, rng = Random(seed), np.random.default_rng(seed)
    with open(folder / "metadata.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if not set("[(") & set(row["text"])]
    random.shuffle(rows)
    parts, places, at = [], [], 0
    for row in rows:
        clip = recordings.read(folder / row["file_name"])
        parts += [np.zeros(round(random.uniform(*pause_s) * OURS_HZ), np.float32), clip]
        at += len(parts[-2])
        places.append(Place(at, at + len(clip), row["text"]))
        at += len(clip)
        if at > seconds * OURS_HZ:
            break
    samples = np.concatenate(parts)
    return samples + rng.normal(0, noise, len(samples)).astype(np.float32), places


def whole(start: int, end: int, text: str, places: Sequence[Place]) -> bool:
    """Whether a piece, samples `start` to `end` at 24 kHz, is whole sentences of the clips that it lies in.

    It is where both ends lie between two clips. Inside a clip, whose pauses nobody marked, its text must be that of
    some sentences one after the other, as far as a recogniser's spelling allows.
    """
    edge = round(EDGE_S * OURS_HZ)
    inside = [place for place in places if place.start + edge < end and start < place.end - edge]
    if inside and all(start < place.start + edge and place.end - edge < end for place in inside):
        return True
    sentences = [part for place in inside for part in re.split(r"(?<=[.!?])\s+", place.text)]
    runs = (" ".join(sentences[i:j]) for i in range(len(sentences)) for j in range(i + 1, len(sentences) + 1))
    return any(likeness(run, text, "en") > 0.85 for run in runs)


if __name__ == "__main__":
    for name in sys.argv[1:] or ["en", "fr", "it"]:
        print(fetch(name))
