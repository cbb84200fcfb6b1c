"""The benchmarks' own arithmetic; their figures are for a quiet machine to make."""

from __future__ import annotations

import json

import pytest

from benchmarks import generate, shared
from benchmarks.generate import Options, bytes_per_step, speedups, turn
from orpheus.errors import UserError
from orpheus.model.base import load_base


def test_generation_is_measured_and_ends_in_one_line_of_json(capsys):
    """On the embedded base, as short as can be: every contender has figures, and the last line is JSON."""
    generate.main(Options(size="tiny", device="cpu", tokens=21, rounds=1, batches=(1, 2)))
    lines = capsys.readouterr().out.splitlines()
    figures = json.loads(lines[-1])
    assert set(figures["speedup_vs_transformers"]) == {"strict", "framed", "strict x 2", "framed x 2"}
    assert [(r["contender"], r["rows"]) for r in figures["results"]] == [
        (name, rows) for rows in (1, 2) for name in ("strict", "framed", "transformers")
    ]
    for result in figures["results"]:
        assert (
            result["tokens_per_s"] > 0 and result["first_frame_s"] > 0 and result["tokens"] % (7 * result["rows"]) == 0
        )
    assert len([line for line in lines if line.startswith("| ")]) == 7 and figures["speed_by"] == "processor seconds"


def test_one_decoding_can_be_measured_alone(capsys):
    generate.main(Options(size="tiny", device="cpu", tokens=14, rounds=1, decoding="framed"))
    assert set(json.loads(capsys.readouterr().out.splitlines()[-1])["speedup_vs_transformers"]) == {"framed"}


def test_a_round_counts_whole_frames_after_the_first():
    clock = [(10.0 + i, 100.0 + 2 * i) for i in range(20)]  # steps at 10, 11, ... seconds
    played = turn((8.0, 0.0), clock, rows=3)
    assert (played.tokens, played.wall_s, played.processor_s, played.first_frame_s) == (21, 7.0, 14.0, 8.0)
    with pytest.raises(UserError, match="ended after 13 tokens"):
        turn((8.0, 0.0), clock[:13], rows=3)


def test_speed_ups_are_against_transformers_with_as_many_rows():
    results = [
        dict(contender=name, rows=rows, tokens_per_s=speed, tokens_per_processor_s=10 * speed + 1)
        for name, rows, speed in [
            ("framed", 1, 9.0),
            ("transformers", 1, 3.0),
            ("framed", 4, 8.0),
            ("transformers", 4, 2),
        ]
    ]
    assert speedups(results, by_clock=True) == {"framed": 3.0, "framed x 4": 4.0}


def test_bytes_of_a_step_are_the_layers_and_the_rows_of_the_head(base_dir):
    loaded = load_base(str(base_dir), load_in_4bit=False)
    layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 128 + 2 * 64
    rows = len(loaded.model.lm_head.weight)
    assert bytes_per_step(loaded, "strict") == bytes_per_step(loaded, "transformers") == 4 * (2 * layer + rows * 64)
    assert bytes_per_step(loaded, "framed") == 4 * (2 * layer + 4096 * 64)


@pytest.mark.parametrize("wrong", [dict(tokens=13), dict(rounds=0), dict(batches=()), dict(batches=(1, 0))])
def test_too_little_to_measure_is_refused(wrong):
    with pytest.raises(UserError, match="tokens must be 14 or more"):
        Options(**wrong)


def test_many_streams_are_measured_both_ways(capsys):
    shared.main(shared.Options(size="tiny", device="cpu", streams=(2,), tokens=7, rounds=1))
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(r["streams"], r["contender"]) for r in figures["rows"]] == [(2, shared.OWN), (2, shared.SHARED)]
    assert all(value > 0 for row in figures["rows"] for value in row.values() if not isinstance(value, str))
    assert set(figures["speedup_vs_own_threads"]) == {"2"}
    with pytest.raises(UserError, match="tokens must be 7 or more"):
        shared.Options(tokens=6)
