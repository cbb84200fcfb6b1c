"""Servers whose short answers are no answers: one line each, and no more than a megabyte of it is read."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from orpheus.engines.remote.engine import RemoteEngine
from orpheus.errors import UserError
from orpheus.format.tokens import ORPHEUS

MODELS = {"data": [{"id": "m", "owned_by": "vllm"}]}


@contextmanager
def odd(models, answer=None):
    """A server that answers this to the question for its models, and that to a prompt."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, what):
            data = what if isinstance(what, bytes) else json.dumps(what).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            self.answer(models)

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(answer)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("models", [
    {"data": [None]}, {"data": ["m"]}, {"data": [{"id": "m", "max_model_len": "long"}]}, {"data": 5}, b"[" * 90_000,
    [], b"x" * 5_000_000, {"data": [{"id": "\x1b[2J\n"}, {"id": "n"}]},
])  # fmt: skip
def test_a_list_of_models_that_is_none(models):
    with odd(models) as url, pytest.raises(UserError) as told:
        RemoteEngine(url, ORPHEUS, 2048)
    assert str(told.value).isprintable() and len(str(told.value)) < 400


@pytest.mark.parametrize("answer", [
    None, [], 5, {"choices": 5}, {"choices": [5]}, {"choices": [], "usage": 5},
    {"choices": [{}], "usage": {"prompt_tokens": "six"}}, {"choices": [{"token_ids": [None]}]}, b"x" * 5_000_000,
])  # fmt: skip
def test_an_answer_to_a_prompt_that_is_none(answer):
    with odd(MODELS, answer) as url, pytest.raises(UserError, match="what is no answer to a prompt"):
        RemoteEngine(url, ORPHEUS, 2048)
