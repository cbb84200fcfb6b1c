"""Text tables to rows: CSV, TSV, `|` as LJSpeech has it, JSON lines, and recordings beside their texts.

What separates the columns, whether there is a header and what the columns hold is found out, said in one line (`Table.
layout`), and refused where it could be otherwise: a wrong transcript learnt is the worst of all outcomes.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from orpheus.config import CorpusOptions
from orpheus.data.columns import AUDIO, FILE_COLUMN, IDS, SPEAKERS, TEXTS
from orpheus.data.contents import SAMPLED, roles
from orpheus.data.files import SUFFIXES, Files, is_recording, same
from orpheus.errors import UserError

SEPARATORS = {"|": "'|'", "\t": "tabs", ";": "';'", ",": "commas"}
LITERAL = "|\t"  # where quotes belong to the text
_WORD = re.compile(r"[^\W\d][\w .-]*")  # what a column may be called

Cells = tuple[int, list[str]]  # the line where a row begins, from 1, and what it holds


@dataclass(frozen=True)
class Table:
    """Rows by column name, the line where each begins, and how the table was read, in a few words."""

    rows: list[dict[str, Any]]
    lines: list[int]
    layout: str
    complete: bool = False  # whether `layout` says what each column is for


def read_table(path: Path, options: CorpusOptions, files: Files) -> Table:
    """The rows of a table; `files` tells which cells are recordings. UserError that names the line."""
    text = read_text(path)
    if path.suffix.lower() in (".jsonl", ".json"):
        return _json_table(path, text)
    lines = text.split("\n")  # never at the other separators of str.splitlines: a transcript may hold them
    first = next((n for n, line in enumerate(lines) if line.strip()), None)
    declared = None if first is None else re.fullmatch(r'"?sep=(.)"?', lines[first].strip())
    if declared:  # for Excel, which then takes any separator
        lines[first or 0] = ""
    separator = declared[1] if declared else _separator(lines[first or 0], options)
    rows = _cells(lines, separator, path, files)
    if not rows:
        raise UserError(f"{path} holds no clips")
    return _rows(rows, separator, path, options, files)


def read_text(path: Path) -> str:
    """A file's text, with line feeds alone: UTF-8, or UTF-16 with its mark. UserError for another encoding."""
    try:
        data = path.read_bytes()
        marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    if text[:100].count("\0") > 10:
        raise UserError(f"{path} is not UTF-8 text (every second byte or so is zero): save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def beside_texts(folder: Path) -> Table | None:
    """Recordings that each have a text file of the same name beside them, or None."""
    rows: list[dict[str, Any]] = []
    for at, folders, names in os.walk(folder):
        folders.sort()
        texts = {same(name[:-4]): name for name in names if name.lower().endswith(".txt")}
        for name in sorted(filter(is_recording, names)):
            text = texts.get(same(name[: name.rindex(".")])) or texts.get(same(name))
            content = read_text(Path(at, text)).strip() if text else None
            rows.append({FILE_COLUMN: os.path.relpath(f"{at}/{name}", folder), "text": content})
    with_text = sum(row["text"] is not None for row in rows)
    layout = f"{with_text} of {len(rows)} recordings have a .txt of the same name beside them"
    return Table(rows, list(range(1, len(rows) + 1)), layout) if with_text else None


# ---- JSON ----


def _json_table(path: Path, text: str) -> Table:
    if text.lstrip().startswith("[") and path.suffix.lower() == ".json":
        rows = list(enumerate(_json(path, 1, text), start=1))
    else:
        rows = [(n, _json(path, n, line)) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for number, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number} is {type(row).__name__}, expected an object {{...}}")
        if str(row.get("offset") or 0).strip("0."):
            raise UserError(
                f"{path} line {number} begins {row['offset']} s into its recording (offset): only whole recordings "
                "are read, so cut it into clips first"
            )
    return Table([row for _, row in rows], [number for number, _ in rows], "an object a line")


def _json(path: Path, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} line {number} is not valid JSON: {error}") from error


# ---- separators and quotes ----


def _separator(line: str, options: CorpusOptions) -> str:
    """By the names that a header has, else `|` or a tab, which a text hardly holds, else what is most in it."""
    known = {name: len(_known(_split(line, name), options)) for name in SEPARATORS if name in line}
    best = max(known, key=lambda name: known[name], default=",")
    if known.get(best):
        return best
    return next((name for name in LITERAL if name in known), max(",;", key=line.count))


def _known(names: Sequence[str], options: CorpusOptions) -> set[str]:
    usual = {*AUDIO, *IDS, *TEXTS, *SPEAKERS}
    usual |= {options.audio_column, options.text_column, options.voice_column, CorpusOptions.voice_column}
    return {name for name in names if name.casefold() in usual or name in usual}


def _split(line: str, separator: str) -> list[str]:
    return [cell.strip().strip('"').strip() for cell in line.split(separator)]


def _cells(lines: list[str], separator: str, path: Path, files: Files) -> list[Cells]:
    """The rows that hold anything, with their cells stripped."""
    rows = _literal(lines, separator) if separator in LITERAL else _quoted(lines, separator, path, files)
    stripped = ((number, [cell.strip() for cell in row]) for number, row in rows)
    return [(number, row) for number, row in stripped if any(row)]


def _literal(lines: list[str], separator: str) -> list[Cells]:
    """Quotes belong to the text, as in LJSpeech and Common Voice, unless a program put them there."""
    rows = [(number, line.split(separator)) for number, line in enumerate(lines, start=1) if line.strip()]
    try:
        parsed = [(number, row) for number, line in enumerate(lines, start=1) if line.strip()
                  for row in csv.reader([line], delimiter=separator, strict=True)]  # fmt: skip
    except csv.Error:
        return rows
    columns = zip(*(row for _, row in rows), strict=False)
    around = any(all(re.fullmatch(r'\s*".*"\s*', cell) for cell in column) for column in columns)
    doubled = any('""' in line for line in lines)
    return parsed if around or doubled or len(_widths(parsed)) < len(_widths(rows)) else rows


def _widths(rows: list[Cells]) -> set[int]:
    return {len(row) for _, row in rows}


def _quoted(lines: list[str], separator: str, path: Path, files: Files) -> list[Cells]:
    if any('\\"' in line for line in lines):  # a quote escaped as in C; no other backslash is an escape
        escaped = [line.replace("\\", "\\\\").replace('\\\\"', '\\"') for line in lines]
        with contextlib.suppress(UserError):
            return list(_csv(escaped, separator, path, files, escapechar="\\"))
    try:
        return list(_csv(lines, separator, path, files))
    except UserError:
        trimmed = [re.sub(rf'"\s+(?={separator}|$)', '"', line) for line in lines]
        with contextlib.suppress(UserError):
            return list(_csv(trimmed, separator, path, files))
        raise


def _csv(lines: list[str], separator: str, path: Path, files: Files, **more: Any) -> Iterator[Cells]:
    reader = csv.reader(
        (line + "\n" for line in lines), delimiter=separator, strict=True, skipinitialspace=True, **more
    )
    begin = 1
    advice = 'close it; a quote inside a quoted text is written twice, ""'
    try:
        for row in reader:
            for number in range(begin + 1, reader.line_num + 1):
                if swallowed := _recording_in(lines[number - 1], separator, files):
                    raise UserError(
                        f"{path} line {begin}: a double quote is not closed there, and line {number} with "
                        f"'{swallowed}' would become part of its text: {advice}"
                    )
            yield begin, row
            begin = reader.line_num + 1
    except csv.Error as error:
        end = "to the end of the file" if "unexpected end" in str(error) else f"({error}, line {reader.line_num})"
        raise UserError(f"{path} line {begin}: a double quote is not closed before the next column {end}: "
                        f"{advice}") from error  # fmt: skip


def _recording_in(line: str, separator: str, files: Files) -> str:
    cells = _split(line, separator)
    return next((cell for cell in cells if cell and (is_recording(cell) or files.find(cell))), "") if cells[1:] else ""


# ---- headers ----


def _rows(rows: list[Cells], separator: str, path: Path, options: CorpusOptions, files: Files) -> Table:
    by = f"columns by {SEPARATORS.get(separator, repr(separator))}"
    if not _header(rows, options, files):
        if separator in LITERAL:
            return _by_contents(rows, by, path, options, files)
        raise UserError(
            f"{path} line {rows[0][0]} is no header with a column '{options.text_column}': it has "
            f"{', '.join(rows[0][1])}; write {FILE_COLUMN}{separator}{options.text_column} above the rows"
        )
    names, rows = rows[0][1], rows[1:]
    if twice := [name for name, count in Counter(filter(None, names)).items() if count > 1]:
        raise UserError(f"{path} has the column '{twice[0]}' twice: rename one")
    _check_widths(rows, len(names), path, "the header", min(2, len(names)) if separator in LITERAL else 1)
    table = [{name: cell for name, cell in zip_longest(names, row) if name} for _, row in rows]
    return Table(table, [number for number, _ in rows], f"{by}, a header")


def _header(rows: list[Cells], options: CorpusOptions, files: Files) -> bool:
    """A first row of names, at least one of them known, or the only row without a recording."""
    (_, first), rest = rows[0], rows[1:]
    names = [name for name in first if name]
    if any(map(is_recording, names)) or any(map(files.find, names)):
        return False
    if len(known := _known(names, options)) > 1 or (known and all(map(_WORD.fullmatch, names))):
        return True
    if not all(map(_WORD.fullmatch, names)):
        return False
    return (
        len(set(names)) == len(names) == len(first)
        and len(rest) > 1
        and all(any(map(files.find, row)) for _, row in rest[:50])
    )


def _check_widths(rows: Sequence[Cells], width: int, path: Path, what: str, least: int = 2) -> None:
    for number, row in rows:
        if len(row) > width:
            raise UserError(
                f"{path} line {number} has more fields than {what} ({len(row)}, not {width}): put double quotes "
                "around a text that holds the separator, or take it out"
            )
        if len(row) < least:
            raise UserError(
                f"{path} line {number} has one field, expected {width}: a text must not go on in the next line, "
                "unless it is in double quotes"
            )


def _by_contents(rows: list[Cells], by: str, path: Path, options: CorpusOptions, files: Files) -> Table:
    """Rows without a header: a column is what its cells are."""
    width = Counter(len(row) for _, row in rows).most_common(1)[0][0]
    _check_widths(rows, width, path, "the others")
    columns = [[row[place] if place < len(row) else "" for _, row in rows] for place in range(width)]
    found = roles(columns, _audio_column(columns, path, files))
    if isinstance(found, str):
        raise UserError(
            f"{path} has no header, and {found}: write one as its first line, such as "
            f"{FILE_COLUMN}|{options.text_column}|{CorpusOptions.voice_column} (any name for what is not used)"
        )
    names = {FILE_COLUMN: [found.audio], options.text_column: found.texts}
    if found.voice is not None and options.voice_column:
        names[options.voice_column] = [found.voice]
    table = [{name: next((columns[place][n] for place in places if columns[place][n]), None)
              for name, places in names.items()} for n in range(len(rows))]  # fmt: skip
    return Table(table, [number for number, _ in rows], f"{by}, no header: {found.said}", True)


def _audio_column(columns: Sequence[Sequence[str]], path: Path, files: Files) -> int:
    step = max(1, len(columns[0]) // SAMPLED)
    found = [sum(map(bool, map(files.find, cells[::step]))) for cells in columns]
    if not any(found):
        cell = columns[0][0]
        raise UserError(
            f"{path}: none of its rows names a recording: there is neither {cell} nor wavs/{cell}{SUFFIXES[0]} in "
            f"{path.parent}"
        )
    return found.index(max(found))
