"""The recording that a table's cell means: the file as written, or the one that another system would write so.

It may have slashes for backslashes, another case, another form of the same letters (macOS writes é as e and an accent),
a suffix or a folder more. What differs in more is not taken, but named.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from pathlib import Path, PurePosixPath

FOLDERS = ("", "wavs", "clips", "audio", "wav")  # where tables without folders have their recordings
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".mp4", ".webm", ".aiff", ".aif", ".wma")


def is_recording(name: str) -> bool:
    """Whether a name ends as a recording's does."""
    return name.strip().lower().endswith(SUFFIXES)


def same(name: str) -> str:
    """What names have in common that one system or another takes for the same."""
    return unicodedata.normalize("NFC", name).casefold()


class Files:
    """Finds the recordings of a table that lies in `folder`; each folder is listed once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listed: dict[str, dict[str, list[str]]] = {}
        self._alike: dict[str, str] | None = None

    def find(self, cell: str) -> Path | None:
        """The file that the cell means, or None."""
        written = str(self.folder / cell)
        if os.path.isfile(written):
            return Path(written)
        parts = PurePosixPath(cell.strip().replace("\\", "/")).parts
        for folder in FOLDERS if parts else ():
            for suffix in ("", *SUFFIXES):
                if found := self._walk([*([folder] if folder else []), *parts[:-1], parts[-1] + suffix]):
                    return Path(found)
        return None

    def near(self, cell: str) -> str:
        """A file of much the same name, in the folders where recordings are looked for; '' if there is none."""
        if self._alike is None:
            self._alike = {}
            for folder in reversed(FOLDERS):
                for names in self._names(str(self.folder / folder)).values():
                    self._alike |= {_loose(name): f"{folder or '.'}/{name}" for name in names if is_recording(name)}
        return self._alike.get(_loose(cell.strip().replace("\\", "/").rsplit("/", 1)[-1]), "")

    def _walk(self, parts: list[str]) -> str:
        at = str(self.folder)
        for part in parts:
            known = (".", "..", os.sep)
            name = part if part in known else _one(part, self._names(at).get(same(part), []))
            if not name:
                return ""
            at = f"{at}/{name}"
        return at if os.path.isfile(at) else ""

    def _names(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._listed:
            names = defaultdict(list)
            try:
                for path in Path(folder).iterdir():
                    names[same(path.name)].append(path.name)
            except (OSError, ValueError):
                pass  # no such folder, or not readable: it holds nothing for us
            self._listed[folder] = names
        return self._listed[folder]


def _one(wanted: str, names: list[str]) -> str:
    """The name as wanted, or the only one that is the same; two that differ in case are two."""
    return wanted if wanted in names else names[0] if len(names) == 1 else ""


def _loose(name: str) -> str:
    """A name without its suffix, zeros before numbers, and what is neither letter nor digit."""
    stem = name[: name.rindex(".")] if is_recording(name) else name
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"[\W_]+", "", same(stem)))
