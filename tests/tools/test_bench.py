"""`orpheus bench`: it finds its scripts, what they print can be read, and their counts are right."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import subprocess
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import common, prepare, stream, train
from benchmarks.machine import Span
from orpheus.__main__ import main
from orpheus.codec.snac import SnacCodec
from orpheus.config import LoraOptions
from orpheus.errors import UserError
from orpheus.model.adapter import add_lora
from orpheus.model.base import load_base
from orpheus.tools import bench
from tests.support.codec_fixtures import speech_like, tiny_snac
from tests.support.pages import DOCS

ROOT = Path(__file__).resolve().parents[2]


def last_line(capsys) -> dict:
    out = capsys.readouterr().out
    assert out.count("\n| ") >= 2, "a table"
    return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize("arguments", [["bench"], ["bench", "--help"]])
def test_bench_lists_its_benchmarks(arguments, capsys):
    main(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("usage: orpheus bench") and [x.split()[0] for x in lines[2:]] == [
        "prepare", "train", "generate", "stream"]  # fmt: skip


def test_an_unknown_benchmark_and_absent_scripts_are_one_line(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "sing"])
    assert stopped.value.code == 2 and "there is no benchmark 'sing'" in capsys.readouterr().err
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "orpheus" / "tools" / "bench.py"))
    with pytest.raises(UserError, match="part of the repository, not of the installed package"):
        bench.find(["stream"])


def test_every_benchmark_has_its_script_and_options(monkeypatch):
    from orpheus.cli import parse

    for name in bench.BENCHMARKS:
        if name == "generate" and not (ROOT / "benchmarks" / "generate.py").is_file():
            continue
        _, module = bench.find([name])
        assert parse(module.Options, []) == module.Options()
        assert {"size", "device", "save"} <= {f.name for f in dataclasses.fields(module.Options)}


def test_stream_is_exact_and_counts_what_is_recomputed(capsys, monkeypatch):
    stream.main(stream.Options(size="tiny", device="cpu", frames=8, chunks=(1, 3), streams=(2,), rounds=1))
    result = last_line(capsys)
    assert result["greatest_error_vs_whole"] < 1e-5 and result["speedup_vs_overlap"] > 0
    rows = {row["contender"]: row for row in result["rows"]}
    assert rows["overlapping windows"]["frames decoded per frame"] == 3.25  # 1 + 2 + 3 + 5 x 4 windows for 8 frames
    assert rows["1 frames a chunk"]["frames decoded per frame"] == 1.0 and "2 streams, in one call" in rows
    assert result["commit"] and result["versions"]["torch"] and result["machine"]["cores"]


def test_prepare_compares_the_same_codes(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(common, "ROOT", tmp_path)
    monkeypatch.setattr(prepare, "model_of", lambda size, what: str(ROOT / "data" / "tiny_codec"))
    prepare.main(prepare.Options(size="tiny", device="cpu", clips=2, clip_s=1.0, rounds=1, save=True))
    result = last_line(capsys)
    assert result["share_of_codes_equal"] == 1.0 and result["speedup_vs_loop"] > 0
    assert json.loads((tmp_path / "prepare_tiny.json").read_text()) == result
    assert [row["contender"].split(",")[0] for row in result["rows"]] == ["the notebook's loop", "ours", "ours"]


def test_the_notebook_s_way_gives_our_ids():
    codec = SnacCodec.from_model(tiny_snac())
    clips = [speech_like(0.5, seed=1), speech_like(0.7, seed=2)]
    assert prepare.notebook(codec, clips) == prepare.ours(codec, clips)


def test_contenders_take_turns_and_the_best_round_counts():
    order: list[str] = []
    spans = common.in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, "cpu")
    assert order == list("ababab") and set(spans) == {"a", "b"}  # the first round warms up
    assert common.seconds(Span(wall_s=2.0, cpu_s=1.0), "cpu") == 1.0
    assert common.seconds(Span(wall_s=2.0, cpu_s=1.0), "cuda:0") == 2.0


def test_flops_are_counted_by_hand(base_dir):
    """A base of 64 x 128, two layers, 4 heads of 16 (2 for keys): against the sum written out."""
    loaded = load_base(str(base_dir), load_in_4bit=False)
    loaded = add_lora(loaded, LoraOptions(r=8), alpha=8, gradient_checkpointing=False, seed=0)
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128 + 2 * 64
    adapters = 8 * 2 * ((64 + 64) * 2 + (64 + 32) * 2 + (64 + 128) * 3)
    vocabulary = loaded.model.config.vocab_size
    lengths, labels = [100, 50], 120
    by_hand = 150 * (4 * (2 * layer + 64) + 6 * adapters) + 4 * 64 * vocabulary * labels
    by_hand += 12 * 2 * 4 * 16 * (100**2 + 50**2) / 2
    assert train.flops(loaded.model, lengths, labels) == pytest.approx(by_hand)
    in_4bit = load_base(str(base_dir), load_in_4bit=True)
    in_4bit = add_lora(in_4bit, LoraOptions(r=8), alpha=8, gradient_checkpointing=False, seed=0)
    assert train.flops(in_4bit.model, lengths, labels) == pytest.approx(by_hand)


def test_a_peak_is_named_only_where_it_is_known():
    assert train.peak_flops(None) == (None, "no peak is known for a CPU")
    assert train.peak_flops({"name": "NVIDIA H200"})[0] == train.PEAK_FLOPS["H200"]
    assert train.peak_flops({"name": "NVIDIA L40S"})[0] == train.PEAK_FLOPS["L40S"]
    peak, why = train.peak_flops({"name": "Radeon"})
    assert peak is None and "Radeon" in why


def test_impossible_options_are_refused():
    for make in (lambda: stream.Options(frames=2), lambda: prepare.Options(clips=0), lambda: train.Options(steps=0),
                 lambda: train.Options(contenders=("padded", "magic"))):  # fmt: skip
        with pytest.raises(UserError):
            make()


def test_the_page_s_and_the_makefile_s_commands_parse():
    from orpheus.cli import parse

    text = DOCS["performance"].text + (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.findall(r"(?:^|-m )orpheus bench (\w+)([^\n#`]*)", text, re.MULTILINE)
    assert {name for name, _ in found} == set(bench.BENCHMARKS) and "\nmake bench " in text
    for name, options in found:
        if (ROOT / "benchmarks" / f"{name}.py").is_file():
            parse(bench.find([name])[1].Options, options.split())
    assert re.search(r"^bench:", text, re.MULTILINE)


@pytest.mark.slow
def test_train_measures_each_contender(base_dir, capsys, monkeypatch):
    """The first in a process of its own, as all are; the others here, to save the seconds that a new process takes."""
    from orpheus.cli import parse

    started: list[list[str]] = []

    def start(command: list[str], **more: Any) -> subprocess.CompletedProcess:
        started.append(command)
        if len(started) == 1:
            return subprocess.run(command, **more)
        lines = io.StringIO()
        with redirect_stdout(lines):
            train.main(parse(train.Options, command[2:]))
        return subprocess.CompletedProcess(command, 0, lines.getvalue(), "")

    monkeypatch.setattr(train, "subprocess", SimpleNamespace(run=start))
    options = train.Options(base=str(base_dir), device="cpu", batch=2, steps=1, clip_s=1.0)
    train.main(options)
    result = last_line(capsys)
    assert [row["contender"] for row in result["rows"]] == ["notebook", "padded", "packed"]
    assert [row["batch"] for row in result["rows"]] == ["1 x 2", "2 x 1", "2 x 1"]
    assert result["mfu"] is None and "CPU" in result["mfu_of"]
    assert all(row["tokens per s"] > 0 and row["peak GB"] > 0 for row in result["rows"])
    assert np.isfinite(result["speedup_vs_notebook"])
