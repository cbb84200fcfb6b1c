"""Readers ahead of the encoder, parts of a data set in processes of their own: the same codes in the same order."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orpheus.cli import parse
from orpheus.config import CorpusOptions
from orpheus.data import corpus, encoding
from orpheus.data.corpus import encode_part
from orpheus.data.encoding import AHEAD, Part, read_ahead
from orpheus.data.prepare import PrepareOptions
from orpheus.data.prepare import main as prepare
from orpheus.errors import UserError
from orpheus.format.tokens import Codes
from tests.support.corpus_fixtures import RATE, CountingCodec, dataset, many, recorded, write_metadata

ROOT = Path(__file__).resolve().parents[2]
# --multi_gpu is how accelerate starts several processes without MPI; without GPUs they run on the CPU.
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
          "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip


# ---- reading ahead ----


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 40), st.integers(1, 5))
def test_results_come_in_order_whoever_reads_first(count, readers):
    def read(number: int) -> int:
        time.sleep((number % 3) / 2000)  # the later ones are often ready before the earlier ones
        return number**2

    assert [(item, take()) for item, take in read_ahead(range(count), read, readers)] == [
        (i, i**2) for i in range(count)
    ]


def test_readers_stay_within_their_bound_and_run_side_by_side():
    asked, at_once, most, lock = [0], [0], [0], threading.Lock()

    def items():
        for number in range(60):
            asked[0] = number + 1
            yield number

    def read(number: int) -> int:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.002)
        with lock:
            at_once[0] -= 1
        return number

    for item, take in read_ahead(items(), read, readers=3):
        assert asked[0] <= item + 1 + 3 * AHEAD
        take()
    assert 2 <= most[0] <= 3


def test_an_error_is_raised_where_its_item_is_taken():
    def read(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        return number

    seen = []
    for item, take in read_ahead(range(5), read, 2):
        try:
            seen.append(take())
        except ValueError as error:
            seen.append(f"{item}: {error}")
    assert seen == [0, 1, "2: two", 3, 4]


def test_closing_stops_the_readers():
    started = []
    reader = read_ahead(range(1000), started.append, 2)
    next(reader)
    reader.close()
    time.sleep(0.05)
    assert len(started) <= 1 + 2 * AHEAD


# ---- the encoder's windows ----


def test_audio_is_held_only_for_two_windows(run, monkeypatch):
    """However large the data set is: one window is filled while the one before is encoded. The result is the same."""
    encoded, ahead = [0.0], []

    class Watched(CountingCodec):
        def encode(self, wavs: list[np.ndarray]) -> list[Codes]:
            # Slower than the readers: it begins when one more clip has been taken than it was given so far.
            enough, patience = min(24, self.encoded + len(wavs) + 1), time.monotonic() + 60
            while len(ahead) < enough and time.monotonic() < patience:
                time.sleep(0.001)
            codes = super().encode(wavs)
            encoded[0] += sum(map(len, wavs)) / RATE
            return codes

    reference = run(many(24)).train.to_list()
    check = corpus.check_record

    def watched(*arguments):
        ahead.append(0.5 * (len(ahead) + 1) - encoded[0])  # seconds taken from the readers and not encoded yet
        return check(*arguments)

    monkeypatch.setattr(corpus, "check_record", watched)
    monkeypatch.setattr(encoding, "WINDOW_S", 2.0)
    assert run(many(24), codec=Watched(identity="fresh")).train.to_list() == reference
    assert encoded[0] == 12.0
    assert 2.0 < max(ahead) <= 4.0 + 0.5  # more than one window, so they overlap; two, and the clip in hand


def test_what_the_encoder_raises_arrives(run, monkeypatch):
    class Broken(CountingCodec):
        def encode(self, wavs: list[np.ndarray]) -> list[Codes]:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(encoding, "WINDOW_S", 1.0)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(many(12), codec=Broken(identity="fresh"))
    assert not [t for t in threading.enumerate() if t.name.startswith("encoder")]


def test_the_reader_s_error_keeps_the_clip_s_name_and_place(run, tmp_path):
    folder = write_metadata(tmp_path / "recordings", ".csv")
    (folder / "clips" / "1.wav").write_bytes(b"no audio at all")
    result = run(folder, max_rejected=0.5)
    assert [(r.name, r.reason) for r in result.rejections] == [("clips/1.wav", "unreadable")]
    assert [clip.name for clip in result.clips] == ["clips/0.wav", "clips/2.wav"]


# ---- parts ----


@given(st.integers(0, 30), st.integers(1, 7))
def test_parts_are_a_partition(count, parts):
    shares = [list(Part(i, parts).of(range(count))) for i in range(parts)]
    assert sorted(number for share in shares for number in share) == list(range(count))
    assert [len(share) for share in shares] == [Part(i, parts).size(count) for i in range(parts)]


@pytest.mark.parametrize("text", ["2/2", "1", "a/b", "-1/2", "0/0", "1/2/3", ""])
def test_a_wrong_part_is_refused(text):
    with pytest.raises(UserError, match="expected i/n"):
        Part.parse(text)


def test_parts_leave_what_the_whole_needs(run, renderer, tmp_path):
    """Each part encodes its own clips alone; afterwards nothing is left to encode, and the result is the same."""
    table = many(11)
    reference = run(table, cache_dir=tmp_path / "other")
    options = CorpusOptions(cache_dir=tmp_path / "cache", validation_share=0.0)
    encoded = []
    for index in range(3):
        counting = CountingCodec()
        clips, rejections = encode_part(Part(index, 3), options, counting, renderer, max_seq_length=4096, dataset=table,
                                        progress=False)  # fmt: skip
        assert [clip.text for clip in clips] == [f"Sentence number {i}." for i in range(index, 11, 3)]
        assert not rejections
        encoded.append(counting.encoded)
    assert encoded == [4, 4, 3]
    counting = CountingCodec()
    result = run(table, codec=counting)
    assert counting.encoded == 0
    assert result.train.to_list() == reference.train.to_list() and result.clips == reference.clips


def test_a_part_leaves_the_judgement_to_the_whole(run, renderer, tmp_path):
    """All clips of one part may be unfit where few of the whole are."""
    table = dataset([*recorded(2), recorded(1)[0][:100], recorded(1)[0]], ["a", "b", "c", "d"])
    options = CorpusOptions(cache_dir=tmp_path / "cache", max_rejected=0.3)
    clips, rejections = encode_part(Part(2, 4), options, CountingCodec(), renderer, max_seq_length=4096, dataset=table,
                                    progress=False)  # fmt: skip
    assert (clips, [r.reason for r in rejections]) == ([], ["too short"])


def read_cache(folder: Path) -> dict[str, list[list[int]]]:
    codes = {path.name: encoding.read_codes(path) for path in folder.rglob("*.npz")}
    return {name: [layer.tolist() for layer in found] for name, found in codes.items() if found}


@pytest.mark.slow
def test_two_worker_processes_encode_what_one_does(base_dir, codec_dir, tmp_path):
    """`accelerate launch` starts two workers; each takes its part by its rank, and the cache is that of one process."""
    folder = write_metadata(tmp_path / "recordings", ".csv")
    common = ["--dataset", str(folder), "--base", str(base_dir), "--codec", str(codec_dir), "--device", "cpu"]

    def call(*arguments: str) -> None:
        prepare(parse(PrepareOptions, [*common, *arguments]))

    one, two = tmp_path / "one", tmp_path / "two"
    command = [sys.executable, *LAUNCH, "-m", "orpheus", "prepare", *common, "--cache-dir", str(two), "--report",
               str(tmp_path / "no.txt")]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "shard 0 of 2: 2 clips" in done.stdout and "shard 1 of 2: 1 clip" in done.stdout
    assert not (tmp_path / "no.txt").exists()  # the report is the whole run's
    call("--cache-dir", str(one), "--report", str(tmp_path / "report.txt"))
    assert read_cache(one) == read_cache(two) and len(read_cache(one)) == 3
    # The merging run: nothing is left to encode, so the cache files stay as they are.
    before = {path: path.stat().st_mtime_ns for path in two.rglob("*.npz")}
    call("--cache-dir", str(two), "--report", str(tmp_path / "report2.txt"))
    assert {path: path.stat().st_mtime_ns for path in two.rglob("*.npz")} == before
    assert (tmp_path / "report2.txt").read_text() == (tmp_path / "report.txt").read_text()
