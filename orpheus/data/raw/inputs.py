"""Which recordings there are, and what is known of their words: a transcript or subtitles beside them, or a table."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from orpheus.config import CorpusOptions
from orpheus.data.files import SUFFIXES, same
from orpheus.data.sources import METADATA_FILES, open_source
from orpheus.data.tables import read_text
from orpheus.errors import UserError

MORE_SUFFIXES = (".oga", ".m4b", ".mka", ".mkv", ".mov", ".m4v", ".avi", ".3gp", ".amr", ".caf", ".w64", ".rf64", ".au",
                 ".ac3", ".mp2", ".mpg", ".ts", ".wv")  # fmt: skip
"""Long recordings come in these too, videos among them."""
TRANSCRIPTS = (".srt", ".vtt", ".txt")  # the first that is there is taken
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Input:
    """A recording: its file, its name in the folder, what its clips are called, and its words if they are known."""

    path: Path
    name: str
    stem: str
    script: str = ""
    script_from: str = ""  # the file that the words come from
    voice: str = ""


@dataclass(frozen=True)
class Inputs:
    """All recordings, and what lies beside them and is not used."""

    recordings: list[Input]
    unused: list[str] = field(default_factory=list)


def find_inputs(source: Path, out: Path) -> Inputs:
    """The recordings that `source` names, a file or a folder, those in `out` left out.

    UserError: there is nothing of the kind, or a transcript can't be read.
    """
    if source.is_file():
        return Inputs(_inputs([source], source.parent, {}))
    if not source.is_dir():
        raise UserError(f"there is no file or folder {source}: name raw recordings")
    files = list(_files(source, out))
    sounds = [path for path in files if path.suffix.lower() in (*SUFFIXES, *MORE_SUFFIXES)]
    if not sounds:
        found = ", ".join(str(path.relative_to(source)) for path in files[:3]) or "nothing"
        raise UserError(f"the folder {source} holds no recordings (it holds {found}): expected {', '.join(SUFFIXES)}")
    recordings = _inputs(sounds, source, _table(source))
    used = {*sounds, *(Path(r.script_from) for r in recordings)}
    others = [path for path in files if path not in used and path.suffix.lower() in TRANSCRIPTS]
    return Inputs(recordings, [str(path.relative_to(source)) for path in others])


def _files(source: Path, out: Path) -> Iterator[Path]:
    for at, folders, names in os.walk(source):
        folders[:] = sorted(n for n in folders if not n.startswith(".") and Path(at, n).resolve() != out.resolve())
        yield from (Path(at, name) for name in sorted(names) if not name.startswith("."))


def _table(folder: Path) -> dict[str, tuple[str, str]]:
    """Text and voice by the path of the recording, where the folder has a table of them."""
    if not any((folder / name).is_file() for name in METADATA_FILES):
        return {}
    records = open_source(CorpusOptions(dataset=str(folder))).records()
    return {str(record.recording.resolve()): (str(record.text or ""), str(record.voice or ""))
            for record in records if isinstance(record.recording, Path)}  # fmt: skip


def _inputs(paths: list[Path], folder: Path, table: dict[str, tuple[str, str]]) -> list[Input]:
    found: list[Input] = []
    stems: set[str] = set()
    for path in paths:
        name = path.relative_to(folder).as_posix()
        text, voice = table.get(str(path.resolve()), ("", ""))
        beside = None if text else _beside(path)
        stem = re.sub(r"\W+", "_", name.removesuffix(path.suffix)).strip("_") or "recording"
        if same(stem) in stems:
            stem = f"{stem}_{hashlib.sha256(name.encode()).hexdigest()[:6]}"
        stems.add(same(stem))
        script = read_text(beside) if beside else text
        found.append(Input(path, name, stem, script, str(beside or ("its table" if text else "")), voice))
    return found


def _beside(path: Path) -> Path | None:
    for suffix in TRANSCRIPTS:
        for candidate in (path.with_suffix(suffix), path.with_name(path.name + suffix)):
            if candidate.is_file():
                return candidate
    return None


def content_key(path: Path) -> str:
    """SHA-256 of a file, hexadecimal. UserError: it can't be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while part := file.read(READ_BYTES):
                digest.update(part)
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror or error}") from error
    return digest.hexdigest()
