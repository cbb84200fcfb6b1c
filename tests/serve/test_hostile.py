"""The attack of benchmarks/hostile.py in miniature: every kind of it happens, and honest answers are right."""

from __future__ import annotations

import pytest

from benchmarks.hostile import Options, fight
from benchmarks.serve_load import Server
from orpheus.errors import UserError
from orpheus.serve.app import create_app
from orpheus.serve.options import ServerOptions
from tests.serve.test_serve_load import case_of
from tests.support.speakers import Speaker, running, until


def test_honest_answers_are_right_while_others_attack(caplog):
    caplog.set_level("INFO", "orpheus")
    app = create_app(Speaker(voices=("anna", "tara"), pause_s=0.001), ServerOptions(max_concurrent=4))
    server = Server.__new__(Server)
    with running(app, most=60) as url:
        host, port = url.removeprefix("http://").split(":")
        server.address = (host, int(port))
        options = Options(minutes=0.05, honest=2, slow=4, silent=80, hang_up=2, malformed=2)
        figures = fight(
            server, [case_of(f, sse) for f in ("pcm", "mp3") for sse in (False, True)], options, lambda: None
        )
        assert figures["honest"].pop("right") > 5 and not any(figures["honest"].values()), figures
        assert set(figures["attacks"]) == {"slow", "silent", "hung up", "malformed"} and figures["worst_wait_s"] < 5
        until(lambda: app.state.desk.admission.running == 0 and app.state.desk.spool.held == 0)
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("orpheus")]
    assert lines and all(line.isprintable() and "forged" not in line for line in lines)


def test_options():
    with pytest.raises(UserError, match="minutes must be above 0"):
        Options(minutes=0)
