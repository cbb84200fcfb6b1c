"""What the server tells of its requests: figures, the log, and texts that were cut short."""

from __future__ import annotations

import json
import re

import pytest
from starlette.testclient import TestClient

from orpheus.serve.app import create_app
from orpheus.serve.options import Keys
from tests.serve.test_app import TEXT, asked, client, error_of, speak, speaker  # noqa: F401
from tests.support.speakers import Speaker, tone

# ---- figures ----


def test_health_and_figures(client, speaker):
    speaker.guard = ("trimmed 0.5 s of silence",)
    speak(client)
    speak(client, voice="eve")
    client.get("/somewhere")
    assert client.get("/health").json() == {"status": "ok", "model": "tiny_orpheus", "running": 0, "queued": 0}
    lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    speech = {s: float(lines[f'orpheus_requests_total{{path="/v1/audio/speech",status="{s}"}}']) for s in (200, 400)}
    assert speech == {200: 1, 400: 1} and lines['orpheus_requests_total{path="other",status="404"}'] == "1.0"
    samples = len(tone(TEXT, "anna", 3))
    assert float(lines["orpheus_audio_seconds_total"]) == pytest.approx(samples / 24000)
    assert float(lines["orpheus_tokens_total"]) == 5 * samples / 2048
    assert (lines["orpheus_guard_actions_total"], lines["orpheus_first_audio_seconds_count"]) == ("1.0", "1.0")
    assert (lines["orpheus_running"], lines["orpheus_queued"]) == ("0.0", "0.0")


def test_two_servers_count_for_themselves(speaker):
    first, second = (TestClient(create_app(speaker)) for _ in range(2))
    speak(first)
    assert 'status="200"' in first.get("/metrics").text and 'path="/v1/audio/speech"' not in second.get("/metrics").text


def test_a_stopping_server_says_so(speaker):
    app = create_app(speaker)
    client = TestClient(app)
    app.state.desk.stopping = True
    answer = speak(client)
    assert error_of(answer, 503)["code"] == "stopping"
    assert int(answer.headers["retry-after"]) > 0 and answer.headers["connection"] == "close"
    assert (client.get("/health").status_code, client.get("/health").json()["status"]) == (503, "stopping")


def test_the_log_has_no_text_and_no_key(speaker, caplog):
    caplog.set_level("INFO", "orpheus")
    client = TestClient(create_app(speaker, keys=Keys(frozenset({"hush-hush"}))))
    answer = client.post(
        "/v1/audio/speech", json=asked(input="My secret."), headers={"Authorization": "Bearer hush-hush"}
    )
    client.post("/v1/audio/speech", json=asked(), headers={"Authorization": "Bearer hush-wrong"})
    assert answer.headers["x-request-id"] in caplog.text and "10 characters, pcm, 0.4 s of speech" in caplog.text
    assert "secret" not in caplog.text and "hush" not in caplog.text


@pytest.mark.parametrize("change", [
    {"input": "A <secrets> tag, [secret], and\n2026-01-01 forged"}, {"input": "<secret"}, {"voice": "secret\n\x1b[2J"},
    {"model": "secret\nline"}, {"secret\nname": 1}, {"input": "Anna: secret"},
])  # fmt: skip
def test_a_request_is_one_line_without_a_client_s_words(caplog, change):
    caplog.set_level("INFO")
    client = TestClient(create_app(Speaker()))
    speak(client, **change)
    client.get("/secret%0Apath")
    client.request("SECRET", "/health")
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("orpheus")]
    assert len(lines) == 3 and "secret" not in "".join(lines).lower() and "".join(lines).isprintable()
    assert re.fullmatch(r"POST /v1/audio/speech (200|4\d\d) in \d.\d\d s, id \w{32}: .+", lines[0])
    assert lines[1].startswith("GET other 404") and lines[2].startswith("OTHER /health 405")


# ---- texts that were cut short ----


def test_a_text_cut_short_is_told(speaker, client, caplog):
    caplog.set_level("INFO", "orpheus")
    assert speak(client, stream=False).headers["x-finish-reason"] == "end_of_speech"
    speaker.finish_reason = "out_of_range"
    assert speak(client, stream=False).headers["x-finish-reason"] == "out_of_range"
    last = speak(client, stream_format="sse").text.split("\n\n")[-2]
    assert json.loads(last.removeprefix("data: "))["finish_reason"] == "out_of_range"
    figures = client.get("/metrics").text
    assert 'orpheus_pieces_total{finish="out_of_range"} 2.0' in figures and 'finish="end_of_speech"} 1.0' in figures
    assert [r.getMessage().endswith("out_of_range") for r in caplog.records] == [False, True, True]


def test_a_collected_answer_is_read_so_that_pieces_can_be_drawn_again(speaker, client):
    for stream in (True, False):
        speak(client, stream=stream)
    assert [r.collected for r in speaker.readings] == [False, True]
