"""Connections over the loopback: who says nothing, who takes nothing, who comes when there is no room."""

from __future__ import annotations

import socket
import time
from contextlib import closing

import httpx
import pytest

from orpheus.serve import connections
from orpheus.serve.app import create_app
from orpheus.serve.command import bind
from orpheus.serve.gate import host_name
from orpheus.serve.options import Keys
from tests.support.speakers import Speaker, running


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), 5)


def test_the_listening_socket_lets_small_answers_go_at_once():
    with closing(bind("127.0.0.1", 0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP  # asyncio sets TCP_NODELAY by this


@pytest.mark.parametrize("said", [b"", b"G", b"GET / HTTP/1.1\r\nHost: loc", b"GET / HTTP/1.1\r\nHost: a\r\n\r\nG"])
def test_a_head_has_a_deadline(monkeypatch, said):
    monkeypatch.setattr(connections, "HEAD_S", 0.2)
    with running(create_app(Speaker())) as url, closing(connect(url)) as silent:
        silent.sendall(said)
        started = time.monotonic()
        with pytest.raises(ConnectionError):
            while silent.recv(1000):
                pass
            raise ConnectionError  # closed in order
        assert time.monotonic() - started < 2
        assert 'dropped_total{reason="silent"}' in httpx.get(f"{url}/metrics").text


def test_the_silent_make_room_for_who_asks(caplog):
    with running(create_app(Speaker()), most=4) as url:
        silent = [connect(url) for _ in range(30)]
        assert httpx.get(f"{url}/health").status_code == 200
        for connection in silent:
            connection.close()
        assert len([line for line in caplog.messages if "dropped" in line]) == 1


@pytest.mark.parametrize("said", ["localhost:80:1", "[::1]evil", "a@localhost", "localhost:x", "localhost/x", "[", ""])
def test_what_is_no_host_and_port_has_no_name(said):
    assert host_name(said) == ""


def test_hosts_are_names_that_are_known_and_all_addresses():
    with running(create_app(Speaker(), hosts={"localhost"})) as url:
        for host, status in {"localhost": 200, "127.0.0.2:8": 200, "evil.example": 400, "127.0.0.1.evil": 400}.items():
            assert httpx.get(f"{url}/health", headers={"Host": host}).status_code == status


def test_head_is_get_without_its_body():
    with running(create_app(Speaker())) as url:
        for path in ("/", "/health", "/v1/models", "/v1/audio/voices"):
            answer = httpx.head(url + path)
            assert answer.status_code == 200 and not answer.content


def test_a_huge_body_without_a_key_is_not_waited_for():
    with running(create_app(Speaker(), keys=Keys(frozenset({"k"})))) as url, closing(connect(url)) as client:
        client.sendall(b"POST /v1/audio/speech HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999\r\n\r\n")
        data = b""
        while part := client.recv(1000):
            data += part
        assert data.startswith(b"HTTP/1.1 401 ") and b"connection: close" in data
