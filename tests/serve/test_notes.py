"""Every answer says that it is synthetic, in its file and in a header."""

from __future__ import annotations

import io
from urllib.parse import unquote

import av
import pytest
from starlette.testclient import TestClient

from orpheus.audio.encoders import FORMS
from orpheus.serve.app import create_app
from tests.support.speakers import Speaker


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("format", FORMS)
def test_every_answer_says_that_it_is_synthetic(format, stream):
    asked = {"model": "tts-1", "input": "Hello there.", "voice": "anna", "seed": 3, "response_format": format}
    answer = TestClient(create_app(Speaker())).post("/v1/audio/speech", json=asked | {"stream": stream})
    note = "Synthetic speech. Voice: anna, seed: 3"
    assert unquote(answer.headers["x-provenance"]) == note
    if format != "pcm":
        with av.open(io.BytesIO(answer.content)) as file:
            assert {**file.metadata, **file.streams[0].metadata}["comment"] == note
