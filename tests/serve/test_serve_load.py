"""The load test's judgement: what it calls right, truncated and wrong."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from benchmarks.serve_load import Case, Options, Server, Tally, ask, judge, quarters, row
from orpheus.audio.encoders import Encoder
from orpheus.errors import UserError
from orpheus.serve.app import create_app
from tests.support.speakers import Speaker, running, tone


def case_of(format: str, sse: bool = False) -> Case:
    encoder = Encoder(format, comment="Synthetic speech. Voice: anna, seed: 1")
    data = encoder.push(tone("Hello there.", "anna", 1)) + encoder.finish()
    body = {"model": "tts-1", "input": "Hello there.", "voice": "anna", "seed": 1, "response_format": format,
            "stream_format": "sse" if sse else "audio"}  # fmt: skip
    return Case(body, data, encoder.samples)


def test_every_byte_is_judged():
    case, tally = case_of("wav"), Tally()
    other = bytearray(case.expected)
    other[-1] ^= 1
    assert judge(case, case.expected, 0.1, 0.2, tally) == "right"
    assert judge(case, case.expected[:-2000], 0.1, 0.2, tally) == "truncated"
    assert judge(case, bytes(other), 0.1, 0.2, tally) == "wrong"
    assert (tally.first_s, len(tally.problems)) == ({"wav": [0.1]}, 2) and "1000 samples are missing" in tally.problems[
        0
    ]
    assert tally.audio_s == case.samples / 24000


def test_events_without_an_end_are_truncated():
    case, tally = case_of("pcm", sse=True), Tally()
    delta = "data: " + json.dumps({"type": "speech.audio.delta", "audio": base64.b64encode(case.expected).decode()})
    done = 'data: {"type": "speech.audio.done", "usage": {}}'
    assert judge(case, f"{delta}\n\n{done}\n\n".encode(), 0.1, 0.2, tally) == "right"
    assert judge(case, f"{delta}\n\n".encode(), 0.1, 0.2, tally) == "truncated"


@pytest.mark.parametrize("sse", [False, True])
def test_a_server_is_asked(sse):
    server, tally = Server.__new__(Server), Tally()
    speaker = Speaker()
    with running(create_app(speaker)) as url:
        host, port = url.removeprefix("http://").split(":")
        server.address = (host, int(port))
        assert ask(server, case_of("opus", sse), tally, None) == ("right", 0.0)
        assert ask(server, case_of("opus", sse), tally, 10) == ("hung up", 0.0)
        assert server.health()["status"] == "ok"
        speaker.fail_at = 3
        assert ask(server, case_of("opus", sse), tally, None)[0] == ("truncated" if sse else "error")


def test_figures_and_options():
    assert (
        row("all", [1.0, 3.0], [2.0, 4.0])["first audio p50, s"] == 2.0 and row("mp3", [], [])["complete answers"] == 0
    )
    assert quarters([1, 1, 2, 2, 3, 3, 4, 4]) == [1, 2, 3, 4] and np.isfinite(quarters([5.0])).all()
    with pytest.raises(UserError, match="minutes must be above 0"):
        Options(minutes=0)
