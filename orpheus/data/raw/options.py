"""What can be chosen when raw recordings are cut: `orpheus prepare RECORDINGS --out FOLDER`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from orpheus.config import check_ranges
from orpheus.errors import UserError


@dataclass(frozen=True)
class RawOptions:
    """Cut raw recordings into clips with texts."""

    out: Path | None = None
    """Make a data set of raw recordings (a file, or a folder of them) in this folder: cut at pauses, with texts. Run it
    again to go on, or after you have edited decisions.csv in it."""
    whisper_model: str | None = None
    """With --out: Whisper model that hears the words: a size, a hub id or a folder (CTranslate2). Default: small.en
    (other languages: small); where that can't be had, tiny.en if it is on this machine."""
    language: str = "en"
    """With --out: the language spoken, two letters."""
    voice: str = ""
    """With --out: the speaker's name, for the column 'source' where the recordings' own table names none."""
    shortest: float = 1.0
    """With --out: seconds that a clip lasts at least."""
    longest: float = 15.0
    """With --out: seconds that a clip lasts at most."""
    loudness: float = -23.0
    """With --out: integrated loudness of each clip in LUFS (ITU-R BS.1770); a peak never passes -1 dBFS."""
    write_out: bool = False
    """With --out: write numbers and abbreviations as they are spoken ("Dr. 5" as "doctor five")."""
    workers: int = 0
    """With --out: recordings worked on at a time. Default: one a core."""

    def __post_init__(self) -> None:
        check_ranges(self, shortest=(0.3, 30), longest=(1, 60), loudness=(-50, -5), workers=(0, math.inf))
        if self.shortest >= self.longest:
            raise UserError(f"shortest is {self.shortest:g} and longest {self.longest:g}, expected a larger longest")
        if not (len(self.language) in (2, 3) and self.language.isascii() and self.language.islower()):
            raise UserError(f"language is '{self.language}', expected a code of two letters such as en")
