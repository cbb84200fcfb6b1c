"""The server over real connections, with a voice that needs no model: who hangs up, who reads slowly, who waits."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import httpx
import pytest

from orpheus.audio.recordings import pcm16, wav_header
from orpheus.serve.admission import Admission
from orpheus.serve.app import create_app
from orpheus.serve.options import ServerOptions
from orpheus.serve.problems import Problem
from tests.support.speakers import Speaker, running, tone, until

TEXT = "A text of some length, so that it lasts."


def asked(**changes) -> dict:
    return {"model": "tts-1", "input": TEXT, "voice": "anna", "response_format": "pcm", "seed": 1} | changes


@contextmanager
def served(speaker: Speaker, **options):
    app = create_app(speaker, ServerOptions(**options))
    with running(app) as url:
        yield url, app.state.desk


def open_request(url: str, version: str = "1.1", **changes) -> socket.socket:
    """A raw connection on which a request was sent."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps(asked(**changes)).encode()
    connection = socket.create_connection((host, int(port)), 10)
    connection.sendall(f"POST /v1/audio/speech HTTP/{version}\r\nHost: {host}\r\nContent-Type: application/json\r\n"
                       f"Content-Length: {len(body)}\r\n\r\n".encode() + body)  # fmt: skip
    return connection


def rest(connection: socket.socket) -> bytes:
    data = b""
    with closing(connection):
        while part := connection.recv(1 << 16):
            data += part
    return data


def test_the_first_bytes_come_before_the_last_are_made():
    speaker = Speaker(hold_at=3)
    with served(speaker) as (url, _), httpx.stream("POST", f"{url}/v1/audio/speech", json=asked()) as answer:
        parts = answer.iter_raw()
        first = next(parts)
        assert first and not speaker.go_on.is_set()
        speaker.go_on.set()
        assert first + b"".join(parts) == pcm16(tone(TEXT, "anna", 1))


def test_a_client_that_hangs_up_stops_the_speech():
    speaker = Speaker(pause_s=0.05)
    with served(speaker, max_concurrent=1) as (url, desk):
        connection = open_request(url, input=TEXT * 50)
        assert b"200 OK" in connection.recv(1000) and desk.admission.running == 1
        connection.close()
        assert until(lambda: desk.admission.running == 0, 5) < 1.0
        made = speaker.readings[0].made
        assert speaker.readings[0].closed_at and made < 100
        time.sleep(0.2)
        assert speaker.readings[0].made == made
        assert 'status="499"' in httpx.get(f"{url}/metrics").text
        assert httpx.post(f"{url}/v1/audio/speech", json=asked()).status_code == 200


def test_a_client_that_hangs_up_before_there_is_audio():
    speaker = Speaker(hold_at=0)
    with served(speaker, max_concurrent=1) as (url, desk):
        connection = open_request(url)
        until(lambda: desk.admission.running == 1)
        connection.close()
        time.sleep(0.2)
        speaker.go_on.set()
        until(lambda: desk.admission.running == 0, 1)
        assert speaker.readings[0].made <= 1 and desk.busy == 0


def test_who_finds_no_place_is_told_when_to_come_again():
    speaker = Speaker(hold_at=1)
    with served(speaker, max_concurrent=1, max_queue=2) as (url, desk), ThreadPoolExecutor() as pool:
        answers = []
        for place in range(3):
            answers.append(pool.submit(httpx.post, f"{url}/v1/audio/speech", json=asked(seed=place), timeout=20))
            until(lambda place=place: (desk.admission.running, desk.admission.queued) == (1, place))
        refused = httpx.post(f"{url}/v1/audio/speech", json=asked())
        assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert httpx.get(f"{url}/health").json() | {"model": ""} == {
            "status": "ok",
            "model": "",
            "running": 1,
            "queued": 2,
        }
        assert httpx.post(f"{url}/v1/audio/speech", json=asked(voice="eve")).status_code == 400  # needs no place
        speaker.go_on.set()
        assert [a.result().content for a in answers] == [pcm16(tone(TEXT, "anna", seed)) for seed in range(3)]
        until(lambda: (desk.admission.running, desk.admission.queued) == (0, 0))


def test_who_waits_and_hangs_up_leaves_the_queue():
    speaker = Speaker(hold_at=1)
    with served(speaker, max_concurrent=1, max_queue=1) as (url, desk):
        first = open_request(url)
        until(lambda: desk.admission.running == 1)
        second = open_request(url, seed=2)
        until(lambda: desk.admission.queued == 1)
        second.close()
        until(lambda: desk.admission.queued == 0, 1)
        third = open_request(url, seed=3)
        until(lambda: desk.admission.queued == 1)
        speaker.go_on.set()
        assert b"x-seed: 1" in rest_of_chunked(first) and b"x-seed: 3" in rest_of_chunked(third)
        assert [r.seed for r in speaker.readings if r.made] == [1, 3]
        assert all(r.closed_at for r in speaker.readings)


def rest_of_chunked(connection: socket.socket) -> bytes:
    """The answer up to its last chunk; the connection stays open behind it."""
    data = b""
    with closing(connection):
        while not data.endswith(b"\r\n0\r\n\r\n"):
            part = connection.recv(1 << 16)
            assert part, "the answer was broken off"
            data += part
    return data


@pytest.mark.parametrize("error", [None, RuntimeError("a bug")])
def test_an_answer_that_fails_midway_is_seen_to_be_broken(error):
    speaker = Speaker(fail_at=4, pause_s=0.01)
    speaker.error = error or speaker.error
    with served(speaker) as (url, desk):
        for format in ("pcm", "mp3", "wav"):
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
                httpx.post(f"{url}/v1/audio/speech", json=asked(response_format=format))
        until(lambda: desk.admission.running == 0, 1)
        assert 'status="aborted"} 3.0' in httpx.get(f"{url}/metrics").text


def test_events_tell_of_an_error_midway():
    with served(Speaker(fail_at=4)) as (url, _):
        answer = httpx.post(f"{url}/v1/audio/speech", json=asked(stream_format="sse"))
        events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
        assert [e["type"] for e in events] == ["speech.audio.delta"] * 4 + ["error"]
        assert events[-1]["error"]["code"] == "no_speech"


def test_an_old_client_gets_the_whole_with_its_length():
    """HTTP/1.0 ends an answer by closing: without a length, a broken one would look complete."""
    with served(Speaker()) as (url, _):
        head, _, body = rest(open_request(url, "1.0")).partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}".encode() in head and body == pcm16(tone(TEXT, "anna", 1))
    with served(Speaker(fail_at=4)) as (url, _):
        assert rest(open_request(url, "1.0")).startswith(b"HTTP/1.1 422 ")


def test_headers_can_t_be_injected():
    with served(Speaker()) as (url, _):
        answer = rest_of_chunked(open_request(url, seed=5))
        assert answer.count(b"x-seed") == 1
        for voice in ("anna\r\nSet-Cookie: a=b", "anna\x00"):
            refused = httpx.post(f"{url}/v1/audio/speech", json=asked(voice=voice))
            assert refused.status_code == 400 and "set-cookie" not in refused.headers


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl(tmp_path):
    with served(Speaker()) as (url, _):
        done = subprocess.run(
            ["curl", "-sS", "--fail", f"{url}/v1/audio/speech", "-H", "Content-Type: application/json",
             "-d", json.dumps(asked(response_format="wav")), "-o", str(tmp_path / "out.wav")])  # fmt: skip
        assert done.returncode == 0
        header = wav_header(None, "Synthetic speech. Voice: anna, seed: 1")
        assert (tmp_path / "out.wav").read_bytes() == header + pcm16(tone(TEXT, "anna", 1))
        large = tmp_path / "large.json"
        large.write_bytes(b" " * 5_000_000)
        told = subprocess.run(["curl", "-s", "-w", "%{http_code}", f"{url}/v1/audio/speech", "-H",
                               "Content-Type: application/json", "--data-binary", f"@{large}"],
                              capture_output=True, text=True)  # fmt: skip
        assert told.stdout.endswith("413") and "body is larger" in told.stdout


def test_many_at_once_get_their_own():
    speaker, before = Speaker(pause_s=0.002), set(threading.enumerate())
    with served(speaker, max_concurrent=4, max_queue=64) as (url, desk), ThreadPoolExecutor(24) as pool:
        jobs = [(seed, "anna" if seed % 2 else "ben") for seed in range(48)]
        answers = list(pool.map(lambda j: httpx.post(f"{url}/v1/audio/speech", json=asked(seed=j[0], voice=j[1]),
                                                     timeout=30).content, jobs))  # fmt: skip
        assert answers == [pcm16(tone(TEXT, voice, seed)) for seed, voice in jobs]
        until(lambda: desk.admission.running == 0 and desk.busy == 0, 1)
        assert len([t for t in set(threading.enumerate()) - before if t.name.startswith("speak")]) == 4


# ---- admission ----


def test_slots_are_given_in_order_and_never_lost():
    async def play() -> None:
        admission = Admission(slots=2, places=3)
        order: list[int] = []

        async def one(name: int) -> float:
            entered = await admission.enter()
            order.append(name)
            return entered

        entered = [await one(0), await one(1)]
        waiting = [asyncio.create_task(one(name)) for name in (2, 3, 4)]
        await asyncio.sleep(0)
        with pytest.raises(Problem, match="all 2 slots are busy and 3 requests wait"):
            await admission.enter()
        waiting[0].cancel()
        admission.leave(entered[0])  # in the same moment: the slot goes to the next one
        await asyncio.sleep(0.01)
        assert order == [0, 1, 3] and (admission.running, admission.queued) == (2, 1)
        admission.leave(entered[1])
        waiting[2].cancel()  # given, and cancelled before it could take it
        await asyncio.sleep(0.01)
        assert order == [0, 1, 3] and (admission.running, admission.queued) == (1, 0)
        admission.leave(await waiting[1])
        assert admission.running == 0

    asyncio.run(play())


def test_the_wait_is_told_by_the_last_answers():
    async def play() -> None:
        admission = Admission(slots=1, places=100)
        assert admission.retry_after_s() == 1
        for _ in range(40):
            admission.leave(await admission.enter() - 10)
        assert admission.retry_after_s() == 10
        for _ in range(40):
            admission.leave(await admission.enter() - 1000)
        assert admission.retry_after_s() == 60

    asyncio.run(play())
