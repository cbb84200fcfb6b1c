"""Open any data set as a stream of records. Nothing is decoded here before it is asked for.

    hub id            the `datasets` library downloads it
    saved data set    a folder written by `Dataset.save_to_disk` (or `DatasetDict`)
    metadata          a folder with metadata.csv or metadata.jsonl: file_name, text and, if you like, source
    LJSpeech          a folder with wavs/ and a metadata.csv without header: id|text|normalised text
    Parquet           one file, or a folder of them

The `datasets` library would decode recordings itself, at one sampling rate and with packages that may be missing.
It is told not to: each recording is read from its own file or bytes, at its own rate.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orpheus.audio import recordings
from orpheus.config import HUB_CORPUS, CorpusOptions, embedded_path
from orpheus.errors import UserError
from orpheus.model.hub import looks_like_path, reason_of

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
FILE_COLUMN = "file_name"  # how metadata files name the recording (the hub's audiofolder layout)
LAYOUTS = "a saved data set, metadata.csv or metadata.jsonl, LJSpeech (metadata.csv and wavs/), or Parquet files"

LOG_EVERY_S = 10.0
LOG_LINE = "corpus: {n_fmt} of {total_fmt} clips, {rate_noinv_fmt}{postfix}\n"

_SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}\.parquet")  # how the hub names the files of a split


@dataclass(frozen=True)
class Record:
    """One row of a data set as it stands there, unchecked.

    `recording` is a file, encoded bytes, decoded (samples, rate in Hz), or None where the row has none.
    """

    name: str
    recording: Path | bytes | tuple[Any, Any] | None
    text: Any
    voice: Any = None

    def samples(self) -> np.ndarray:
        """Read the recording: mono float32 [N] at 24 kHz, whatever its own rate. UserError if that can't be done."""
        return self.read()[0]

    def read(self, max_s: float | None = None) -> tuple[np.ndarray, list[recordings.Finding]]:
        """As `samples`, with what was found out about the channels; a file of more than `max_s` seconds is refused."""
        if self.recording is None:
            raise UserError(f"{self.name}: the row has no recording")
        if isinstance(self.recording, tuple):
            return _from_array(*self.recording, name=self.name), []
        name = self.name if isinstance(self.recording, bytes) else None
        return recordings.read_noting(self.recording, name=name, max_s=max_s)


@dataclass(frozen=True)
class Source:
    """A data set: what it is called, how many rows are used, and a function that goes through them."""

    name: str
    count: int
    records: Callable[[], Iterator[Record]]


class Progress:
    """Clips and seconds of audio per second, on stderr: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int, enabled: bool) -> None:
        from tqdm import tqdm

        lines: Any = {"mininterval": LOG_EVERY_S, "maxinterval": LOG_EVERY_S, "bar_format": LOG_LINE}
        self._seconds, self._start = 0.0, time.monotonic()
        self._bar = tqdm(
            total=total, desc="corpus", unit="clip", disable=not enabled, **({} if sys.stderr.isatty() else lines)
        )

    def add(self, seconds: float) -> None:
        """One more clip is done, with `seconds` of audio."""
        self._seconds += seconds
        took = max(time.monotonic() - self._start, 1e-9)
        self._bar.set_postfix_str(f"{self._seconds / took:.1f} s of audio/s", refresh=False)
        self._bar.update()

    def close(self) -> None:
        """End the display, with a last line."""
        self._bar.close()


@dataclass(frozen=True)
class _Columns:
    audio: str
    text: str
    voice: str | None

    def __iter__(self) -> Iterator[str]:
        return (name for name in (self.audio, self.text, self.voice) if name is not None)

    def record(self, name: str, row: dict[str, Any], folder: Path) -> Record:
        voice = row[self.voice] if self.voice is not None else None
        return Record(name, _recording(row[self.audio], folder), row[self.text], voice)


def open_source(options: CorpusOptions, dataset: Dataset | DatasetDict | None = None) -> Source:
    """The data set that `options.dataset` names, or `dataset` itself, as records (the first `options.limit`).

    UserError: it does not exist or can't be had, its layout is unknown, or a column is missing.
    """
    source = _open(options, dataset)
    if not options.limit:
        return source
    count = min(options.limit, source.count)
    return Source(source.name, count, lambda: itertools.islice(source.records(), count))


def _open(options: CorpusOptions, dataset: Any) -> Source:
    if dataset is not None:
        return _from_dataset(dataset, "the given data set", options)
    if not options.dataset:
        raise UserError(f"no data set is named: give --dataset a hub id or a folder with {LAYOUTS}")
    path = Path(embedded_path(options.dataset)).expanduser()
    if os.path.isdir(path):
        return _from_folder(path, options)
    if os.path.isfile(path):
        return _from_file(path, options)
    if looks_like_path(options.dataset) or path.suffix in (".csv", ".jsonl", ".parquet"):
        raise UserError(f"data set: there is no file or folder {path}")
    return _from_hub(options.dataset, options)


def _from_folder(folder: Path, options: CorpusOptions) -> Source:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _from_saved(folder, options)
    metadata = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
    if len(metadata) == 2:
        raise UserError(
            f"{folder} has both {' and '.join(METADATA_FILES)}: name the one to use, --dataset {metadata[1]}"
        )
    if metadata:
        return _from_file(metadata[0], options)
    parquet = sorted(folder.rglob("*.parquet"))
    if parquet:
        return _from_parquet(_of_split(parquet, folder, options.split), str(folder), options)
    found = ", ".join(sorted(p.name for p in itertools.islice(folder.iterdir(), 5))) or "nothing"
    raise UserError(f"the folder {folder} is no data set (it holds {found}): expected {LAYOUTS}")


def _from_file(path: Path, options: CorpusOptions) -> Source:
    if path.suffix == ".parquet":
        return _from_parquet([path], str(path), options)
    if path.suffix not in (".csv", ".jsonl"):
        raise UserError(f"data set: {path} is neither .csv, .jsonl nor .parquet")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    # Only line feeds end a line: str.splitlines would also split at the separators that a transcript may hold.
    lines = text.replace("\r\n", "\n").split("\n")
    if path.suffix == ".jsonl":
        return _from_rows(_json_rows(path, lines), path, options)
    if "|" in lines[0]:
        return _from_ljspeech(path, lines)
    return _from_rows(_csv_rows(path, lines), path, options)


def _csv_rows(path: Path, lines: list[str]) -> list[dict[str, Any]]:
    reader = csv.DictReader(line + "\n" for line in lines)
    rows = []
    try:
        for row in reader:
            if None in row:
                raise UserError(
                    f"{path} line {reader.line_num} has more fields than the header: put double quotes "
                    "around a text that holds a comma"
                )
            rows.append(row)
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num} is not valid CSV: {error}") from error
    return rows


def _json_rows(path: Path, lines: list[str]) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path} line {number} is not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number} is {type(row).__name__}, expected an object {{...}}")
        rows.append(row)
    return rows


def _from_rows(rows: list[dict[str, Any]], path: Path, options: CorpusOptions) -> Source:
    if not rows:
        raise UserError(f"{path} holds no clips")
    present = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    audio_column = options.audio_column if options.audio_column in present else FILE_COLUMN
    columns = _find_columns(present, options, str(path), audio_column)

    def records() -> Iterator[Record]:
        for number, row in enumerate(rows, start=1):
            complete = {name: row.get(name) for name in columns}
            yield columns.record(str(complete[columns.audio] or f"row {number}"), complete, path.parent)

    return Source(str(path), len(rows), records)


def _from_ljspeech(path: Path, lines: list[str]) -> Source:
    wavs = path.parent / "wavs"
    if not wavs.is_dir():
        raise UserError(
            f"{path} is separated by '|', as LJSpeech is, but there is no folder {wavs}; for another "
            f"layout write it with commas and the header {FILE_COLUMN},text"
        )
    rows = [line.split("|") for line in lines if line.strip()]

    def records() -> Iterator[Record]:
        for clip_id, *texts in rows:
            candidates = [wavs / f"{clip_id}.wav", wavs / f"{clip_id}.flac", wavs / clip_id]
            file = next((p for p in candidates if os.path.isfile(p)), candidates[0])  # False for a name too long
            text = next((t for t in reversed(texts[:2]) if t.strip()), None)  # normalised, or else as written
            yield Record(file.relative_to(path.parent).as_posix(), file, text)

    return Source(str(path.parent), len(rows), records)


def _of_split(files: list[Path], folder: Path, split: str) -> list[Path]:
    """The files of one split if they are named by split, as on the hub (train-00000-of-00002.parquet); else all."""
    splits = {file: match["split"] for file in files if (match := _SHARD.fullmatch(file.name))}
    if not splits:
        return files
    chosen = [file for file in files if splits.get(file) == split]
    if not chosen:
        raise UserError(
            f"{folder} has no split '{split}': it has {', '.join(sorted(set(splits.values())))}; "
            "choose one with --split"
        )
    return chosen


def _from_parquet(files: Sequence[Path], name: str, options: CorpusOptions) -> Source:
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    columns: dict[Path, _Columns] = {}  # a file may lack the voice column that another has
    for file in files:
        try:
            table = pq.ParquetFile(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{file} is not a Parquet file: {_first_line(error)}") from error
        columns[file] = _find_columns(table.schema_arrow.names, options, str(file))
        count += table.metadata.num_rows

    def records() -> Iterator[Record]:
        number = itertools.count(1)
        for file in files:
            names = columns[file]
            try:
                for batch in pq.ParquetFile(file).iter_batches(batch_size=32, columns=list(names)):
                    for row in batch.to_pylist():
                        yield names.record(_row_name(next(number), row[names.audio]), row, file.parent)
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{file} is damaged: {_first_line(error)}") from error

    return Source(name, count, records)


def _from_saved(folder: Path, options: CorpusOptions) -> Source:
    from datasets import load_from_disk

    try:
        dataset = load_from_disk(str(folder))
    except Exception as error:  # damaged files surface as any of arrow's, json's or the library's own errors
        raise UserError(f"{folder} is a damaged saved data set ({_first_line(error)}): save it again") from error
    return _from_dataset(dataset, str(folder), options)


def _from_dataset(dataset: Any, name: str, options: CorpusOptions) -> Source:
    from datasets import Audio, Dataset, DatasetDict

    if isinstance(dataset, DatasetDict):
        if options.split not in dataset:
            raise UserError(
                f"{name} has no split '{options.split}': it has {', '.join(dataset)}; choose one with --split"
            )
        dataset = dataset[options.split]
    if not isinstance(dataset, Dataset):
        raise UserError(f"the data set is {type(dataset).__name__}, expected datasets.Dataset")
    columns = _find_columns(dataset.column_names, options, name)
    table = dataset.with_format(None).select_columns(list(columns))
    if isinstance(table.features[columns.audio], Audio):
        table = table.cast_column(columns.audio, Audio(decode=False))
    voices = getattr(table.features.get(columns.voice), "names", None)  # a ClassLabel column holds numbers

    def records() -> Iterator[Record]:
        for number, row in enumerate(table, start=1):
            if voices and row[columns.voice] is not None:
                row[columns.voice] = voices[row[columns.voice]]
            yield columns.record(_row_name(number, row[columns.audio]), row, Path())

    return Source(name, len(table), records)


def _from_hub(name: str, options: CorpusOptions) -> Source:
    from datasets import load_dataset

    try:
        dataset = load_dataset(name, split=options.split)
    except Exception as error:  # the hub client, the file readers and the network layer raise unrelated types
        note = f" ({HUB_CORPUS} has been disabled on the hub since April 2026)" if name == HUB_CORPUS else ""
        raise UserError(
            f"data set '{name}' is no folder here and can't be had from the hub: {reason_of(error)}"
            f"{note}. Give --dataset a local folder or another id such as Etherll/kaira, or use the "
            "embedded corpus: --preset tiny, or --dataset data/corpus"
        ) from error
    return _from_dataset(dataset, name, options)


def _find_columns(present: Sequence[str], options: CorpusOptions, where: str, audio_column: str = "") -> _Columns:
    audio_column = audio_column or options.audio_column
    voice: str | None = options.voice_column
    if voice not in present and voice in ("", CorpusOptions.voice_column):
        voice = None  # a single speaker
    wanted = {"audio": audio_column, "text": options.text_column} | ({"voice": voice} if voice else {})
    for option, column in wanted.items():
        if column not in present:
            raise UserError(
                f"{where} has no column '{column}': it has {', '.join(present) or 'none'}; "
                f"name the right one with --{option}-column"
            )
    return _Columns(audio_column, options.text_column, voice)


def _recording(cell: Any, folder: Path) -> Path | bytes | tuple[Any, Any] | None:
    if isinstance(cell, dict):
        if cell.get("array") is not None:
            return cell["array"], cell.get("sampling_rate")
        cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
    if isinstance(cell, str) and cell:
        return folder / cell  # an absolute path stays as it is
    return cell if isinstance(cell, (bytes, Path)) else None


def _row_name(number: int, cell: Any) -> str:
    path = cell.get("path") if isinstance(cell, dict) else cell
    return f"row {number} ({Path(path).name})" if isinstance(path, (str, Path)) and str(path) else f"row {number}"


def _from_array(array: Any, rate_hz: Any, *, name: str) -> np.ndarray:
    """Decoded samples [N], [channels, N] or [N, channels] in -1..1 -> mono float32 [N] at 24 kHz."""
    samples = np.asarray(array)
    if (samples.dtype.kind != "f" and samples.size) or samples.ndim not in (1, 2):
        raise UserError(
            f"{name}: the array has dtype {samples.dtype} and shape {samples.shape}, expected "
            "floats in -1..1, [N] or [channels, N]"
        )
    if not isinstance(rate_hz, (int, float)) or rate_hz <= 0:
        raise UserError(f"{name}: the sampling rate is {rate_hz}, expected a number of Hz")
    if samples.ndim == 2:
        samples = samples.mean(axis=int(np.argmin(samples.shape)))
    return recordings.resample(samples.astype(np.float32), int(rate_hz))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
