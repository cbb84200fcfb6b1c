"""Raw recordings -> a folder with clips, metadata.csv and the table of all decisions.

    find ─► hear (kept in .prepare/) ─► decide ─► a person's edits ─► clips, metadata.csv, decisions.csv

Each recording is worked on by itself, several at a time. Whatever is finished is not done again: an interrupted run
goes on, and a changed option or recording redoes what it concerns.
"""

from __future__ import annotations

import csv
import importlib.util
import logging
import re
import shutil
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from orpheus.audio.recordings import SAMPLE_RATE_HZ, atomic_path
from orpheus.data.raw.cutting import PAD_S
from orpheus.data.raw.deciding import INSIDE, clip_name, decide
from orpheus.data.raw.inputs import Inputs, find_inputs
from orpheus.data.raw.options import RawOptions
from orpheus.data.raw.state import BEFORE, KEPT, State, load_state
from orpheus.data.raw.table import DROP, Merged, Row, merge, read_rows, write_rows
from orpheus.data.raw.texts import has_digits
from orpheus.data.raw.working import Ear, Work, cut_all, hear_all, workers
from orpheus.errors import MissingPackage, UserError, check_folder, disk_errors
from orpheus.format.prompt import check_voice
from orpheus.hearing.whisper import MODEL, on_this_machine, ready

log = logging.getLogger(__name__)

PACKAGES = {"silero_vad": "silero-vad", "pyloudnorm": "pyloudnorm", "faster_whisper": "faster-whisper"}
LISTED = 5


def check(source: str | None, options: RawOptions) -> None:
    """UserError for what can't work, before anything heavy is loaded: no recordings, no packages, a wrong folder."""
    assert options.out is not None
    if not source:
        raise UserError("--out makes a data set of raw recordings: name the file or folder they are in")
    out, given = options.out, Path(source).expanduser()
    if not given.exists():
        raise UserError(f"there is no file or folder {given}: name raw recordings")
    if out.resolve() == given.resolve():
        raise UserError(f"--out is {out}, where the recordings are: name a new folder")
    check_folder(out, "--out")
    check_voice(options.voice, ())
    load_state(out)
    lacking = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if lacking:
        raise MissingPackage("', '".join(lacking), "cutting recordings", f"pip install {' '.join(lacking)}")


def run(source: str, options: RawOptions) -> str:
    """Make the data set, or go on with it; a summary in plain text. UserError as `check`, and what is found later."""
    with disk_errors(f"can't work in {options.out}", "what is finished is kept: run the same command again"):
        return _run(source, options)


def _run(source: str, options: RawOptions) -> str:
    assert options.out is not None
    state = load_state(options.out)
    found = find_inputs(Path(source).expanduser(), options.out)
    table = read_rows(state.table) if state.table.is_file() else None
    works = [Work(recording) for recording in found.recordings]
    (options.out / KEPT / "heard").mkdir(parents=True, exist_ok=True)
    ear = _ear(options, state, workers(options, len(works)))
    if not all(state.heard_file(work.recording.stem).is_file() for work in works):
        ear.whisper()  # a model that can't be had is told before the work begins
    hear_all(works, state, ear, options)
    state.model = ear.model
    decided, remarks = _decided(works, options)
    table, more = _without_changed(works, state, table)
    stems = {work.recording.name: work.recording.stem for work in works}
    merged = merge(decided, state.last, table, lambda name, start_s: clip_name(stems[name], start_s))
    for work in works:
        work.rows = [row for row in merged.rows if row.recording == work.recording.name]
    try:
        cut_all(works, state, options)
    finally:
        state.save()
    rows = [row for work in works for row in work.rows]
    _write(rows, decided, merged.edited, state)
    return _summary(rows, merged, works, found, state, [*remarks, *more])


def _ear(options: RawOptions, state: State, callers: int) -> Ear:
    """The model that is asked for, or that heard before, or the default one; tiny.en where that can't be had."""
    if model := options.whisper_model or state.model:
        return Ear(model, options.language, callers)
    ear = Ear("small.en" if options.language == "en" else "small", options.language, callers)
    if on_this_machine(ear.model) is None:
        try:
            ear.whisper()
        except MissingPackage:
            raise
        except UserError as error:
            if options.language != "en" or not ready(MODEL):
                raise
            log.warning("%s. %s is used, which mishears more", error, MODEL)
            return Ear(MODEL, options.language, callers)
    return ear


def _decided(works: Sequence[Work], options: RawOptions) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    remarks: list[str] = []
    for work in works:
        recording = work.recording
        if work.heard is None or not work.heard.words:
            reason = work.problem or "no words are heard in it"
            rows.append(Row(clip_name(recording.stem, 0.0), DROP, "", 0.0, 0.0, recording.name, "", reason))
            remarks.append(f"{recording.name}: {reason}")
            continue
        own, remark = decide(recording, work.heard, options)
        rows += own
        remarks += [remark] if remark else []
    return rows, remarks


def _without_changed(
    works: Sequence[Work], state: State, table: list[Row] | None
) -> tuple[list[Row] | None, list[str]]:
    """The table without the rows of recordings that are not what they were: their times mean nothing any more."""
    changed = {work.recording.name for work in works if state.recordings.get(work.recording.name, work.key) != work.key}
    state.recordings = {work.recording.name: work.key for work in works}
    if table is None or not changed:
        return table, []
    shutil.copyfile(state.table, state.out / BEFORE)
    state.last = [row for row in state.last if row.recording not in changed]
    remark = f"{_some(sorted(changed))} changed: decided anew; the table as it was is {BEFORE}"
    return [row for row in table if row.recording not in changed], [remark]


def _write(rows: Sequence[Row], decided: Sequence[Row], edited: Collection[str], state: State) -> None:
    kept = [row for row in rows if row.kept]
    for clip in set(state.clips) - {row.clip for row in kept}:
        (state.out / clip).unlink(missing_ok=True)
        if not state.clips[clip].problem:
            del state.clips[clip]
    voices = any(row.voice for row in kept)
    with atomic_path(state.out / "metadata.csv") as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text", *(["source"] if voices else [])])
        writer.writerows([row.clip, row.text, *([row.voice] if voices else [])] for row in kept)
    final = {row.clip: row for row in rows if row.clip not in edited}
    state.last = [final.get(row.clip, row) for row in decided]
    write_rows(state.table, rows)
    state.save()


def _summary(rows: Sequence[Row], merged: Merged, works: Sequence[Work], found: Inputs, state: State,
             remarks: Sequence[str]) -> str:  # fmt: skip
    kept, dropped = [row for row in rows if row.kept], [row for row in rows if not row.kept]
    lengths_s = sorted(row.end_s - row.start_s + 2 * PAD_S for row in kept)
    recorded_s = sum(work.heard.length for work in works if work.heard) / SAMPLE_RATE_HZ
    unfinished = sum(row.reason.startswith(INSIDE) for row in kept)
    suggested = sum(bool(row.suggested_tags) for row in rows)
    digits = sum(has_digits(row.text) for row in kept)
    lines = {
        "clips": f"{len(kept)} in {state.out}, {sum(lengths_s) / 60:.1f} min from "
                 f"{_count(len(works), 'recording')} of {recorded_s / 60:.1f} min",
        "seconds": f"{lengths_s[0]:.1f} shortest, {lengths_s[len(lengths_s) // 2]:.1f} median, "
                   f"{lengths_s[-1]:.1f} longest" if lengths_s else "",
        "sentences": f"{unfinished} of the clips begin or end inside a sentence" if unfinished else "",
        "left out": _reasons(dropped),
        "by hand": f"{_count(len(merged.edited), 'row')} edited, {merged.removed} taken out"
                   if merged.edited or merged.removed else "",
        "numbers": f"{_count(digits, 'text')} with figures: --write-out writes them as they are spoken"
                   if digits else "",
        "tags": f"suggested in {_count(suggested, 'row')}; none is put in unasked" if suggested else "",
        "unused": f"{_some(found.unused)}: no recording of that name" if found.unused else "",
        "table": f"{state.table}: edit it (decision, text, start_s, end_s) and run the same command again",
        "next": f"orpheus doctor {state.out} (what is wrong with them), orpheus train --dataset {state.out}"
                if kept else "",
    }  # fmt: skip
    told = [f"{name:>9}  {value}" for name, value in lines.items() if value]
    return "\n".join(told + [f"{'warning':>9}  {remark}" for remark in remarks])


def _reasons(dropped: Sequence[Row]) -> str:
    """'3 too short, 1 the words are uncertain', with how long they are together."""
    if not dropped:
        return ""
    counts = Counter(re.split(r"[:(\d]| in \d", row.reason)[0].strip() or "by hand" for row in dropped)
    seconds = sum(row.end_s - row.start_s for row in dropped)
    return f"{len(dropped)}, {seconds / 60:.1f} min: " + ", ".join(
        f"{n} {reason}" for reason, n in counts.most_common()
    )


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
