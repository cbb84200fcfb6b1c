"""examples/: short programs that run as they stand."""

from __future__ import annotations

import asyncio
import io
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from tests.support.corpus_fixtures import write_metadata
from tests.support.pages import ROOT

FOLDER = ROOT / "examples"


def run(name: str, *arguments: object) -> dict:
    """Run an example in this process, in the current folder; what it has defined."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        return runpy.run_path(str(FOLDER / name), run_name="__main__")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_they_are_short_and_all_are_tried():
    lengths = {path.name: path.read_text(encoding="utf-8").count("\n") for path in FOLDER.glob("*.py")}
    assert set(lengths) == {"speak.py", "stream.py", "train.py", "serve_client.py", "ray_serve.py"}
    assert max(lengths.values()) <= 40, lengths


def test_speak(elsewhere, capsys):
    run("speak.py", "--base", "embedded:tiny_orpheus", "--voice", "tara")
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert [soundfile.info(elsewhere / f"generated_audio/output_{k}.wav").duration > 0.5 for k in (0, 1)] == [True] * 2


def test_stream(elsewhere, monkeypatch, capsys):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=out, flush=lambda: None, write=lambda text: None))
    tts = run("stream.py", "--base", "embedded:tiny_orpheus", "tara: It is a sunny day.")["tts"]
    [speech] = tts.generate("tara: It is a sunny day.", seed=1)
    streamed = np.frombuffer(out.getvalue(), "<i2") / 32768
    assert len(streamed) == len(speech.samples) and np.allclose(streamed, speech.samples, atol=2 / 32768)


def test_train(elsewhere, monkeypatch, capsys):
    from orpheus.engines.torch.engine import TorchEngine
    from tests.support.voices import some_codes

    def stream(self, prompts, sampling, seeds):  # three steps don't teach when to end
        yield from ((0, int(i)) for i in [*self.layout.flatten(some_codes(5)), self.layout.end_of_speech])

    monkeypatch.setattr(TorchEngine, "stream", stream)
    folder = write_metadata(elsewhere / "my_recordings", ".csv")
    run("train.py", "--dataset", folder, "--max-steps", 2, "--output-dir", "lora_anna")
    out = capsys.readouterr().out
    assert "2 steps, training loss" in out and "spoken: trained.wav" in out
    assert (elsewhere / "lora_anna" / "adapter_model.safetensors").is_file() and Path(
        "trained.wav"
    ).stat().st_size > 9000


def test_serve_client(elsewhere, capsys):
    from orpheus.serve.app import create_app
    from tests.support.speakers import Speaker, running

    with running(create_app(Speaker())) as address:
        run("serve_client.py", "Hello there.", "--server", address, "--voice", "anna")
        assert soundfile.info("hello.wav").samplerate == 24000 and "first bytes after" in capsys.readouterr().out
        with pytest.raises(SystemExit, match="nobody"):
            run("serve_client.py", "Hello there.", "--server", address, "--voice", "nobody", "--out", "not.wav")
    assert not Path("not.wav").exists()


def test_ray_serve_s_replica_answers(monkeypatch):
    """With a stand-in for Ray, which starts nothing: what one replica makes of a request."""
    started: list = []

    def deployment(kind):
        kind.options = lambda **given: SimpleNamespace(bind=lambda *a: kind(*a))
        return kind

    serve = SimpleNamespace(deployment=deployment, start=lambda **given: started.append(given),
                            run=lambda replica, blocking: started.append(replica))  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(serve=serve))
    run("ray_serve.py", "--preset", "tiny")
    options, replica = started
    assert options == {"http_options": {"host": "127.0.0.1"}}

    async def ask(body) -> tuple[int, bytes]:
        async def parsed():
            return body

        answer = await replica(SimpleNamespace(json=parsed))
        if answer.status_code != 200:
            return answer.status_code, answer.body
        return 200, b"".join([part async for part in answer.body_iterator])

    status, sound = asyncio.run(ask({"text": "It is a sunny day.", "voice": "tara", "seed": 1}))
    assert status == 200 and sound[:4] == b"RIFF" and len(sound) > 20_000
    for wrong in ({"text": ""}, {}, {"text": "Hi.", "sead": 1}, 5, {"text": "Hi.", "voice": "nobody"}):
        status, said = asyncio.run(ask(wrong))
        assert status == 400 and json.loads(said)["error"]


@pytest.mark.slow
def test_ray_serve_itself():
    pytest.importorskip("ray", reason="Ray is no dependency of this project: pip install 'ray[serve]'")
    import subprocess

    import httpx

    command = [sys.executable, FOLDER / "ray_serve.py", "--preset", "tiny", "--replicas", "2"]
    program = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert any("ready at" in line for line in program.stdout)
        answer = httpx.post("http://127.0.0.1:8000", json={"text": "It is a sunny day.", "voice": "tara"}, timeout=60)
        assert answer.status_code == 200 and answer.content[:4] == b"RIFF"
    finally:
        program.terminate()
        program.communicate(timeout=60)
