"""What is wrong with a data set at first sight, told before anything heavy is loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path

from orpheus.config import CorpusOptions, embedded_path
from orpheus.data.columns import find_columns
from orpheus.data.sources import TABLES, open_source
from orpheus.errors import UserError
from orpheus.model.hub import looks_like_path


def check_source(options: CorpusOptions) -> None:
    """UserError, as `open_source`, for a data set on this disk that can't be used; the hub is not asked.

    Of a saved data set its description alone is read: the library that opens it must not be imported before Unsloth.
    """
    if options.dataset is None:
        return
    folder = Path(embedded_path(options.dataset)).expanduser()
    if (folder / "state.json").is_file():
        _check_saved(folder, options)
    elif (folder / "dataset_dict.json").is_file():
        _check_splits(folder, options)
    elif any(folder.glob("*/state.json")) or any(folder.glob("*/dataset_dict.json")):
        return  # one level down
    elif os.path.exists(folder) or looks_like_path(options.dataset) or folder.suffix.lower() in (*TABLES, ".parquet"):
        open_source(options)


def _check_splits(folder: Path, options: CorpusOptions) -> None:
    splits = _described(folder / "dataset_dict.json", "splits")
    if options.split not in splits:
        raise UserError(f"{folder} has no split '{options.split}': it has {', '.join(splits)}; choose one with --split")
    _check_saved(folder / options.split, options)


def _check_saved(folder: Path, options: CorpusOptions) -> None:
    find_columns(_described(folder / "dataset_info.json", "features"), options, str(folder), lambda column: set())


def _described(file: Path, what: str) -> list[str]:
    """The names of a saved data set's splits or columns (files of `Dataset.save_to_disk`). UserError: damaged."""
    try:
        return [str(name) for name in json.loads(file.read_text(encoding="utf-8"))[what]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file.parent} is a damaged saved data set ({file.name}: {error}): save it again") from error
