"""Voices whose model runs elsewhere: on a server (a scripted one), or in vLLM, chosen by name or by the address."""

from __future__ import annotations

import pytest

from orpheus.config import DATA_DIR
from orpheus.errors import UserError
from orpheus.model.provenance import Provenance
from orpheus.speak.inference import OrpheusInference
from tests.support.scripted_server import DONE, ScriptedServer, event, sends
from tests.support.voices import some_codes

BASE = str(DATA_DIR / "tiny_orpheus")
LAYOUT = Provenance.load(DATA_DIR / "tiny_orpheus").layout
IDS = LAYOUT.flatten(some_codes(4)).tolist()


@pytest.fixture
def server():
    scripted = ScriptedServer()
    scripted.script = sends(event("", [*IDS, LAYOUT.end_of_speech], "stop"), DONE)
    yield scripted
    scripted.stop()


@pytest.mark.parametrize("engine", ["auto", "remote"])
def test_a_served_voice_speaks(server, engine):
    tts = OrpheusInference(None, BASE, engine=engine, server=server.url)
    [speech] = tts.generate("Hello <laughs>", voice="tara", seed=1)
    assert speech.finish_reason == "end_of_speech" and speech.codes.frames == 4
    assert speech.provenance["model"]["server"] == "vLLM" and speech.provenance["model"]["engine"] == "remote"
    assert server.requests[0]["prompt"] == tts.renderer.prompt("Hello <laughs>", "tara")
    assert "tara" in tts.voices
    tts.engine.close()


def test_what_does_not_fit_is_refused(server):
    with pytest.raises(UserError, match="the engine remote needs the address of the server: --server http"):
        OrpheusInference(None, BASE, engine="remote")
    with pytest.raises(UserError, match="the engine torch needs no server: leave out --server"):
        OrpheusInference(None, BASE, engine="torch", server=server.url)
    with pytest.raises(UserError, match="the engine remote can't read voice.gguf"):
        OrpheusInference(None, "voice.gguf", engine="remote", server=server.url)
