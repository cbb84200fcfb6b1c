"""Clients that take their answers slowly or not at all: what they hold, and for how long."""

from __future__ import annotations

import time
from contextlib import closing

import httpx
import pytest

from orpheus.audio.recordings import pcm16
from orpheus.serve import answers, connections
from orpheus.serve.app import create_app
from tests.serve.test_connections import connect
from tests.serve.test_server_live import TEXT, asked, open_request, rest, rest_of_chunked, served
from tests.support.speakers import Speaker, running, tone, until

LONG = TEXT * 90  # 7 MB of PCM, more than all buffers on the way
FRAMES = len(tone(LONG, "anna", 1)) // 2048


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch):
    """So that a spool of a test may be small too."""
    monkeypatch.setattr(answers, "SETTLE_S", 0.05)


def slow_one(url: str, **changes):
    """A client that has taken the first bytes and takes no more."""
    connection = open_request(url, input=LONG, **changes)
    assert changes.get("stream") is False or connection.recv(100)
    return connection


def test_a_slot_is_given_back_when_the_speech_is_made():
    speaker = Speaker()
    with served(speaker, max_concurrent=1, max_input_chars=10_000) as (url, desk):
        clients = [slow_one(url, seed=seed, stream=bool(seed % 2)) for seed in range(3)]
        until(lambda: desk.admission.running == 0 and len(speaker.readings) == 3)
        assert [r.made for r in speaker.readings] == [FRAMES] * 3 and desk.spool.held > 5_000_000
        assert httpx.post(f"{url}/v1/audio/speech", json=asked()).content == pcm16(tone(TEXT, "anna", 1))
        said = rest_of_chunked(clients[1])  # and then it gets all of it
        assert len(said) > 2 * 2048 * FRAMES - 1000
        for client in clients:
            client.close()
        until(lambda: desk.spool.held == 0 and desk.busy == 0)


def test_where_the_spool_is_full_a_slow_reader_holds_back_its_own_speech_and_nobody_else():
    speaker = Speaker()
    with served(speaker, max_concurrent=2, max_input_chars=10_000) as (url, desk):
        desk.spool.most = 100_000
        connection = slow_one(url)
        made = []
        until(lambda: made.append(speaker.readings[0].made) or made[-20:-1] == [made[-1]] * 19, 5)
        held = speaker.readings[0].made
        assert 0 < held < FRAMES and desk.admission.running == 1
        assert httpx.post(f"{url}/v1/audio/speech", json=asked()).content == pcm16(tone(TEXT, "anna", 1))
        until(lambda: desk.admission.running == 1, 1)
        assert speaker.readings[0].made == held and desk.spool.held < 300_000
        assert rest(connection).endswith(b"0\r\n\r\n")
        until(lambda: desk.admission.running == 0 and desk.spool.held == 0, 1)
        assert speaker.readings[0].made == FRAMES


def test_where_the_spool_is_full_a_collected_answer_keeps_its_slot_until_it_is_taken():
    with served(Speaker(), max_concurrent=1, max_input_chars=10_000) as (url, desk):
        desk.spool.most = 100_000
        connection = slow_one(url, stream=False)
        until(lambda: desk.spool.held > 2 * 2048 * FRAMES - 1000)
        time.sleep(0.2)
        assert desk.admission.running == 1
        with closing(connection):
            head, _, data = connection.recv(1000, 0x100).partition(b"\r\n\r\n")  # MSG_WAITALL
            while len(data) < 2 * 2048 * FRAMES:
                data += connection.recv(1 << 16)
        assert data == pcm16(tone(LONG, "anna", 1)) and b"x-finish-reason: end_of_speech" in head
        until(lambda: desk.admission.running == 0 and desk.spool.held == 0, 1)


@pytest.mark.parametrize("changes", [{}, {"stream_format": "sse"}, {"stream": False}])
def test_who_is_slower_than_the_speech_for_long_is_broken_off(monkeypatch, caplog, changes):
    caplog.set_level("INFO", "orpheus")
    monkeypatch.setattr(answers, "PATIENCE_S", -1e6)
    with served(Speaker(), max_concurrent=1, max_input_chars=10_000) as (url, desk):
        desk.spool.most = 100_000
        with closing(slow_one(url, **changes)):
            until(lambda: "POST /v1/audio/speech aborted" in caplog.text, 5)
            until(lambda: desk.admission.running == 0 and desk.spool.held == 0, 1)
        assert "slow_reader" in caplog.text and len(caplog.records) == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_write_that_stalls_is_ended(monkeypatch, stream):
    monkeypatch.setattr(connections, "STALL_S", 0.2)
    with served(Speaker(), max_concurrent=1, max_input_chars=10_000) as (url, desk):
        desk.spool.most = 100_000
        with closing(slow_one(url, stream=stream)) as stalled:
            until(lambda: 'dropped_total{reason="stalled"} 1.0' in httpx.get(f"{url}/metrics").text, 5)
            until(lambda: desk.admission.running == 0 and desk.spool.held == 0 and desk.busy == 0, 1)
            said = rest(stalled)
            assert len(said) < 2 * 2048 * FRAMES and not said.endswith(b"0\r\n\r\n")  # seen to be broken


def test_who_finds_every_connection_spoken_to_is_told_503():
    speaker = Speaker(hold_at=1)
    app = create_app(speaker)
    with running(app, most=3) as url:
        clients = [open_request(url, seed=seed) for seed in range(3)]
        until(lambda: app.state.desk.admission.running == 3)
        with closing(connect(url)) as refused:
            assert refused.recv(1000).startswith(b"HTTP/1.1 503 ")
        speaker.go_on.set()
        for client in clients:
            assert rest_of_chunked(client).startswith(b"HTTP/1.1 200 ")
        assert 'dropped_total{reason="full"} 1.0' in httpx.get(f"{url}/metrics").text
