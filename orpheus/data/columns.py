"""Which columns of a data set hold the recording, the transcript and the speaker.

The options name them. Where an option was left at its default and there is no such column, names that are usual
elsewhere are taken, if only one of them is there, and the report says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from orpheus.config import CorpusOptions
from orpheus.errors import UserError
from orpheus.format.prompt import check_voice

FILE_COLUMN = "file_name"  # how metadata files name the recording (the hub's audiofolder layout)
AUDIO = ("audio_filepath", "path", "wav_filename", "audio_file", "audio_path", "wav_path", "wav", "file", "filename",
         "filepath", "file_path", FILE_COLUMN)  # the first three: NeMo, Common Voice, DeepSpeech  # fmt: skip
IDS = ("id", "utt_id", "clip_id")  # a recording's name without its suffix, where nothing else names it
IN_TABLES = ((FILE_COLUMN,), AUDIO, IDS)  # what names the recording in a table: a file, never its content
TEXTS = ("sentence", "transcript", "transcription", "transcribed_text")  # sentence: Common Voice
SPEAKERS = ("speaker", "speaker_name", "voice", "speaker_id", "client_id")
PEOPLE = range(2, 51)  # how many a column that looks like a speaker must name to be one


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are used; `said` tells them in one line."""

    audio: str
    text: str
    voice: str | None
    said: str = ""

    def __iter__(self) -> Iterator[str]:
        return (name for name in (self.audio, self.text, self.voice) if name is not None)


def find_columns(present: Sequence[str], options: CorpusOptions, where: str,
                 values: Callable[[str], set[Any]], audio: Sequence[Sequence[str]] = (AUDIO,)) -> Columns:  # fmt: skip
    """The columns among those `present`; `values` gives what a column holds, `audio` the usual names, best first.

    UserError that names the option: a column is missing, or several could be meant.
    """
    named = _column("audio", options.audio_column, audio, present, where)
    text = _column("text", options.text_column, (TEXTS,), present, where)
    voice, note = _voice(present, options, where, values)
    voices = f"voices from '{voice}'" if voice else "no voices"
    said = f"recordings from '{named}', texts from '{text}', {voices}{note}"
    return Columns(named, text, voice, said)


def _column(option: str, wanted: str, usual: Sequence[Sequence[str]], present: Sequence[str], where: str) -> str:
    """The column wanted; where that is the default, else the only one in the first group of usual names with any."""
    default = wanted == getattr(CorpusOptions, f"{option}_column")
    for names in ([wanted], *usual) if default else ():
        matches = [wanted] if wanted in present else [name for name in present if name.strip().casefold() in names]
        if len(matches) > 1:
            raise UserError(f"{where} has {' and '.join(map(repr, matches))}: choose one with --{option}-column")
        if matches:
            return matches[0]
    if wanted in present:
        return wanted
    raise _no_column(option, usual[0][0] if default and len(usual[0]) == 1 else wanted, present, where)


def _no_column(option: str, column: str, present: Sequence[str], where: str) -> UserError:
    return UserError(
        f"{where} has no column '{column}': it has {', '.join(present) or 'none'}; "
        f"name the right one with --{option}-column"
    )


def _voice(present: Sequence[str], options: CorpusOptions, where: str,
           values: Callable[[str], set[Any]]) -> tuple[str | None, str]:  # fmt: skip
    if options.voice_column in present:
        return options.voice_column, ""
    if options.voice_column == "":
        return None, ""
    if options.voice_column != CorpusOptions.voice_column:
        raise _no_column("voice", options.voice_column, present, where)
    notes = []
    for column in sorted((c for c in present if c.strip().casefold() in SPEAKERS), key=_rank):
        people = {str(value) for value in values(column) if value not in (None, "")}
        if len(people) in PEOPLE and all(map(_is_voice, people)):
            return column, f" ({len(people)} people)"
        names = "no person" if not people else "one person" if len(people) == 1 else f"{len(people)} people"
        notes.append(f"'{column}' names {names}: not used")
    return None, f" ({'; '.join(notes)})" if notes else ""


def _rank(column: str) -> int:
    return SPEAKERS.index(column.strip().casefold())


def _is_voice(name: str) -> bool:
    try:
        return check_voice(name, ()) is not None
    except UserError:
        return False
