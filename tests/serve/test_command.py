"""`python -m orpheus serve` as a program: what it says, where it listens, and how it ends."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from orpheus.config import VoiceOptions
from orpheus.errors import MissingPackage, UserError
from orpheus.serve.command import Lines, ServeOptions, bind, main
from tests.support.speakers import until

ROOT = Path(__file__).resolve().parents[2]
TEXT = "The cat is here. It is a sunny day."


class Program:
    """The verb in a process of its own, on a free port."""

    def __init__(self, *arguments: str, before: Callable[[], None] | None = None, **environment: str) -> None:
        command = [
            sys.executable,
            "-m",
            "orpheus",
            "serve",
            "--adapter",
            "None",
            "--preset",
            "tiny",
            "--port",
            "0",
            "--decoding",
            "framed",
            "--piece-chars",
            "40",
        ]  # long texts are too much for the tiny voice
        self.process = subprocess.Popen([*command, *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, env={**os.environ, **environment},
                                        preexec_fn=before)  # fmt: skip
        self.lines = [self.process.stdout.readline() for _ in range(3)]
        self.url = re.search(r"http://\S+", self.lines[0])[0]

    def ask(self, seed: int, **more) -> httpx.Response:
        body = {"model": "tts-1", "input": TEXT, "voice": "tara", "response_format": "pcm", "seed": seed} | more
        return httpx.post(f"{self.url}/v1/audio/speech", json=body, timeout=60)

    def health(self) -> dict:
        return httpx.get(f"{self.url}/health").json()

    def end(self, seconds: float = 30) -> tuple[int, str]:
        """Its exit code and what it said on standard error."""
        errors = self.process.communicate(timeout=seconds)[1]
        return self.process.returncode, errors


@contextmanager
def program(*arguments: str, **more: Any) -> Iterator[Program]:
    started = Program(*arguments, **more)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.communicate()


def test_a_signal_to_end_loses_no_answer():
    """Two answers under way and two in the queue when SIGTERM comes: all four are completed, new ones refused."""
    with program("--max-concurrent", "2") as server:
        assert "tiny_orpheus, voices dan, leo, tara, is served on http://127.0.0.1:" in server.lines[0]
        expected = server.ask(0).content
        answers: dict[int, httpx.Response] = {}
        threads = [threading.Thread(target=lambda s=s: answers.update({s: server.ask(s)})) for s in (0, 1, 2, 3)]
        for thread in threads:
            thread.start()
        until(lambda: (h := server.health())["running"] == 2 and h["queued"] == 2)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.health()["status"] == "stopping")
        refused = server.ask(9)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "stopping"
        for thread in threads:
            thread.join()
        code, said = server.end()
        assert code == 0 and "4 requests are answered first" in said and "Traceback" not in said
        assert {seed: answer.status_code for seed, answer in answers.items()} == dict.fromkeys(range(4), 200)
        assert answers[0].content == expected and all(len(a.content) > 10_000 for a in answers.values())
        assert np.abs(np.frombuffer(answers[3].content, "<i2")).max() > 1000


def test_ctrl_c_twice_ends_at_once_and_a_limit_cuts_off():
    with program("--shutdown-seconds", "0.2", ORPHEUS_API_KEYS="sesame") as server:
        assert "Bearer KEY" in server.lines[1]
        assert server.ask(0).status_code == 401
        broken: list[Exception] = []
        thread = threading.Thread(target=lambda: broken.append(long_answer(server.url, "sesame")))
        thread.start()
        until(lambda: server.health()["running"] == 1)
        server.process.send_signal(signal.SIGINT)
        code, said = server.end()
        thread.join()
        assert code == 1 and "1 requests took longer than 0.2 s and are cut off" in said
        assert isinstance(broken[0], (httpx.RemoteProtocolError, httpx.HTTPStatusError))  # 500 before its first byte
    with program() as server:
        thread = threading.Thread(target=lambda: broken.append(long_answer(server.url, "")))
        thread.start()
        until(lambda: server.health()["running"] == 1)
        server.process.send_signal(signal.SIGINT)
        until(lambda: server.health()["status"] == "stopping")
        started = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        assert server.end()[0] == 130 and time.monotonic() - started < 2
        thread.join()


def test_more_silent_connections_than_descriptors():
    """The connections that say nothing make room; the log stays short, although each is refused something."""
    with program(before=few_descriptors) as server:
        host, port = server.url.removeprefix("http://").split(":")
        silent = [socket.create_connection((host, int(port)), 5) for _ in range(260)]
        assert server.health()["status"] == "ok" and server.ask(0).status_code == 200
        for connection in silent:
            connection.close()
        server.process.send_signal(signal.SIGTERM)
        code, said = server.end()
        logged = [line for line in said.splitlines() if re.match(r"\d{4}-", line)]  # the rest are progress bars
        assert code == 0 and len(logged) < 12 and said.count("connections dropped") == 1
        assert re.search(
            r"^\d{4}-\d\d-\d\d \S+ INFO POST /v1/audio/speech 200 in .* s, id \w+: 35 characters", said, re.M
        )


def few_descriptors() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "a\rb", "\x9b31m", "\u2028", "\u202e"])
def test_nothing_forges_a_line_of_the_log(text):
    try:
        raise ValueError(f"odd: {text}POST /v1/audio/speech 200")
    except ValueError:
        record = logging.LogRecord("orpheus", logging.INFO, "", 1, "said %s end", (text,), sys.exc_info())
    line, *traceback = Lines("%(asctime)s %(message)s").format(record).split("\n")
    assert line.endswith(f"said {ascii(text)[1:-1]} end") and line.isprintable()
    assert all(part.startswith("    ") and part.isprintable() for part in traceback)


def long_answer(url: str, key: str) -> Exception:
    """How an answer of some minutes ended."""
    body = {"model": "tts-1", "input": TEXT * 90, "voice": "tara", "response_format": "pcm"}
    try:
        httpx.post(f"{url}/v1/audio/speech", json=body, headers={"Authorization": f"Bearer {key or 'x'}"},
                   timeout=60).raise_for_status()  # fmt: skip
    except httpx.HTTPError as error:
        return error
    raise AssertionError("it was answered")


def test_a_port_that_is_taken_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run([sys.executable, "-m", "orpheus", "serve", "--port", str(port)], cwd=ROOT, text=True,
                              capture_output=True)  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"error: can't listen on 127.0.0.1:{port}: Address already in use; choose another" in done.stderr


def test_an_unknown_host_is_one_line():
    with pytest.raises(UserError, match=r"can't listen on no\.such\.host\.invalid:8000: .*choose another"):
        bind("no.such.host.invalid", 8000)


def test_two_servers_can_t_share_a_port():
    with bind("127.0.0.1", 0) as first, pytest.raises(UserError, match="Address already in use"):
        bind("127.0.0.1", first.getsockname()[1])


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingPackage, match="the server needs the package 'uvicorn'.*pip install fastapi uvicorn"):
        main(ServeOptions(port=0, model=VoiceOptions(adapter=None, preset="tiny")))


@pytest.mark.parametrize("wrong", [{"port": -1}, {"port": 70_000}])
def test_ports(wrong):
    with pytest.raises(UserError, match="port is .*expected 0..65535"):
        ServeOptions(**wrong)
