"""Open any data set as a stream of records. Nothing is decoded here before it is asked for.

    hub id            the `datasets` library downloads it
    saved data set    a folder written by `Dataset.save_to_disk` (or `DatasetDict`)
    a table           metadata.csv, or any other .csv, .tsv, .jsonl (`tables`): file_name, text and, if you like, source
    LJSpeech          a folder with wavs/ and a metadata.csv without header: id|text|normalised text
    texts             1.txt beside 1.wav
    Parquet           one file, or a folder of them

The `datasets` library would decode recordings itself, at one sampling rate and with packages that may be missing.
It is told not to: each recording is read from its own file or bytes, at its own rate.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orpheus.audio import recordings
from orpheus.config import HUB_CORPUS, CorpusOptions, embedded_path
from orpheus.data.columns import IN_TABLES, Columns, find_columns
from orpheus.data.files import Files
from orpheus.data.tables import Table, beside_texts, read_table
from orpheus.errors import UserError
from orpheus.model.hub import looks_like_path, reason_of

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.tsv", "metadata.txt")
TABLES = (".csv", ".tsv", ".jsonl")
LAYOUTS = (
    "a saved data set, metadata.csv or another table (.tsv, .jsonl), LJSpeech (metadata.csv and wavs/), recordings "
    "with a .txt beside each, or Parquet files"
)

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
    hint: str = ""  # what to add where there is no such file

    def samples(self) -> np.ndarray:
        """Read the recording: mono float32 [N] at 24 kHz, whatever its own rate. UserError if that can't be done."""
        return self.read()[0]

    def read(self, max_s: float | None = None) -> tuple[np.ndarray, list[recordings.Finding]]:
        """As `samples`, with what was found out about the channels; a file of more than `max_s` seconds is refused."""
        if isinstance(self.recording, tuple):
            return _from_array(*self.recording, name=self.name), []
        return self._by(recordings.read_noting, max_s)

    def channels(self, max_s: float | None = None) -> tuple[np.ndarray, int]:
        """The samples float32 [N, C] as they are stored, and their rate in Hz; errors as in `read`."""
        if isinstance(self.recording, tuple):
            return self.samples()[:, None], recordings.SAMPLE_RATE_HZ
        return self._by(recordings.read_channels, max_s)

    def _by(self, read: Callable[..., Any], max_s: float | None) -> Any:
        if self.recording is None:
            raise UserError(f"{self.name}: the row has no recording")
        name = self.name if isinstance(self.recording, bytes) else None
        try:
            return read(self.recording, name=name, max_s=max_s)
        except recordings.AudioProblem as problem:
            raise recordings.AudioProblem(f"{problem}{self.hint}", problem.reason) from problem


@dataclass(frozen=True)
class Source:
    """A data set: what it is called, how many rows are used, a function that goes through them, and how it was read."""

    name: str
    count: int
    records: Callable[[], Iterator[Record]]
    layout: str = ""


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


def open_source(options: CorpusOptions, dataset: Dataset | DatasetDict | None = None) -> Source:
    """The data set that `options.dataset` names, or `dataset` itself, as records (the first `options.limit`).

    UserError: it does not exist or can't be had, its layout is unknown, or a column is missing.
    """
    source = _open(options, dataset)
    if not options.limit:
        return source
    count = min(options.limit, source.count)
    return replace(source, count=count, records=lambda: itertools.islice(source.records(), count))


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
    if looks_like_path(options.dataset) or path.suffix.lower() in (*TABLES, ".parquet"):
        raise UserError(f"data set: there is no file or folder {path}")
    return _from_hub(options.dataset, options)


def _from_folder(folder: Path, options: CorpusOptions) -> Source:
    if open_it := _described(folder, options):
        return open_it()
    parquet = sorted(folder.rglob("*.parquet"))
    if parquet:
        return _from_parquet(_of_split(parquet, folder, options.split), str(folder), options)
    if file := _one_of_split(_tables(folder), folder, options):
        return _from_file(file, options)
    inner = [path for path in _entries(folder) if path.is_dir() and (_described(path, options) or _tables(path))]
    if chosen := _one_of_split(inner, folder, options):
        return _from_folder(chosen, options)
    if table := beside_texts(folder):
        return _from_table(table, folder, folder, options)
    found = ", ".join(path.name for path in _entries(folder)[:5]) or "nothing"
    raise UserError(f"the folder {folder} is no data set (it holds {found}): expected {LAYOUTS}")


def _described(folder: Path, options: CorpusOptions) -> Callable[[], Source] | None:
    """How to open a folder that says itself what it is: a saved data set, or one with metadata."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return lambda: _from_saved(folder, options)
    metadata = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
    if len(metadata) > 1:
        names = " and ".join(path.name for path in metadata)
        raise UserError(f"{folder} has both {names}: name the one to use, --dataset {metadata[1]}")
    return (lambda: _from_file(metadata[0], options)) if metadata else None


def _tables(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.suffix.lower() in TABLES and path.is_file()]


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _one_of_split(paths: Sequence[Path], folder: Path, options: CorpusOptions) -> Path | None:
    """The only one, or the one that has the split's name. UserError where there are several others."""
    chosen = [path for path in paths if path.stem == options.split] or list(paths)
    if len(chosen) > 1:
        names = ", ".join(path.name for path in chosen[:5])
        raise UserError(f"{folder} has several data sets, {names}: name the one to use, --dataset {chosen[0]}")
    return chosen[0] if chosen else None


def _from_file(path: Path, options: CorpusOptions) -> Source:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _from_parquet([path], str(path), options)
    if suffix not in (*TABLES, ".json", ".txt"):
        raise UserError(f"data set: {path} is neither .csv, .tsv, .jsonl, .txt nor .parquet")
    return _from_table(read_table(path, options, Files(path.parent)), path, path.parent, options)


def _from_table(table: Table, path: Path, folder: Path, options: CorpusOptions) -> Source:
    if not table.rows:
        raise UserError(f"{path} holds no clips")
    present = list(dict.fromkeys(itertools.chain.from_iterable(table.rows)))

    def people(column: str) -> set[str]:
        return {str(cell) for row in table.rows if (cell := row.get(column)) is not None}

    columns = find_columns(present, options, str(path), people, IN_TABLES)

    def records() -> Iterator[Record]:
        files = Files(folder)
        for line, row in zip(table.lines, table.rows, strict=True):
            cell = row.get(columns.audio)
            record = _record(columns, str(cell or f"line {line}"), {name: row.get(name) for name in columns}, folder)
            yield _found(record, cell, files) if isinstance(cell, str) and cell else record

    said = "" if table.complete else f"; {columns.said}"
    return Source(str(path), len(table.rows), records, f"{table.layout}{said}")


def _found(record: Record, cell: str, files: Files) -> Record:
    """The record with the file that its cell means, or with a file of much the same name to complain with."""
    if file := files.find(cell):
        return replace(record, recording=file)
    near = files.near(cell)
    return replace(record, hint=f"; there is {near}" if near else "")


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

    def people(column: str) -> set[Any]:
        parts = (pq.ParquetFile(file) for file in files)
        tables = (part.read([column]) for part in parts if column in part.schema_arrow.names)
        return set(itertools.chain.from_iterable(table[column].unique().to_pylist() for table in tables))

    count = 0
    columns: dict[Path, Columns] = {}  # a file may lack the voice column that another has
    for file in files:
        try:
            table = pq.ParquetFile(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{file} is not a Parquet file: {_first_line(error)}") from error
        columns[file] = find_columns(table.schema_arrow.names, options, str(file), people)
        count += table.metadata.num_rows

    def records() -> Iterator[Record]:
        number = itertools.count(1)
        for file in files:
            names = columns[file]
            try:
                for batch in pq.ParquetFile(file).iter_batches(batch_size=32, columns=list(names)):
                    for row in batch.to_pylist():
                        yield _record(names, _row_name(next(number), row[names.audio]), row, file.parent)
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{file} is damaged: {_first_line(error)}") from error

    return Source(name, count, records, columns[files[0]].said)


def _from_saved(folder: Path, options: CorpusOptions) -> Source:
    from datasets import load_from_disk

    try:
        dataset = load_from_disk(str(folder))
    except Exception as error:  # damaged files surface as any of arrow's, json's or the library's own errors
        why = _newer(error) or f"is a damaged saved data set ({_first_line(error)}): save it again"
        raise UserError(f"{folder} {why}") from error
    return _from_dataset(dataset, str(folder), options)


def _newer(error: Exception) -> str:
    """Why a data set saved by a later version can't be read: it has features of a type unknown here; '' for others."""
    from datasets import __version__

    if not (found := re.search(r"Feature type '(\w+)' not found", str(error))):
        return ""
    return (
        f"was saved by a newer version of datasets (it has a feature of the type {found[1]}, as version 4 writes), and "
        f"here is {__version__}: write it there with .to_parquet('clips.parquet') and give that file"
    )


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
    columns = find_columns(dataset.column_names, options, name, lambda column: set(dataset.unique(column)))
    table = dataset.with_format(None).select_columns(list(columns))
    if isinstance(table.features[columns.audio], Audio):
        table = table.cast_column(columns.audio, Audio(decode=False))
    voices = getattr(table.features.get(columns.voice), "names", None)  # a ClassLabel column holds numbers

    def records() -> Iterator[Record]:
        for number, row in enumerate(table, start=1):
            if voices and row[columns.voice] is not None:
                row[columns.voice] = voices[row[columns.voice]]
            yield _record(columns, _row_name(number, row[columns.audio]), row, Path())

    return Source(name, len(table), records, columns.said)


def _from_hub(name: str, options: CorpusOptions) -> Source:
    from datasets import load_dataset

    try:
        dataset = load_dataset(name, split=options.split)
    except Exception as error:  # the hub client, the file readers and the network layer raise unrelated types
        if newer := _newer(error):
            raise UserError(f"data set '{name}' {newer}") from error
        note = f" ({HUB_CORPUS} has been disabled on the hub since April 2026)" if name == HUB_CORPUS else ""
        raise UserError(
            f"data set '{name}' is no folder here and can't be had from the hub: {reason_of(error)}"
            f"{note}. Give --dataset a local folder or another id such as Etherll/kaira, or use the "
            "embedded corpus: --preset tiny, or --dataset data/corpus"
        ) from error
    return _from_dataset(dataset, name, options)


def _record(columns: Columns, name: str, row: dict[str, Any], folder: Path) -> Record:
    voice = row[columns.voice] if columns.voice is not None else None
    return Record(name, _recording(row[columns.audio], folder), row[columns.text], voice)


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
