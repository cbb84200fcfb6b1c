"""docker/ and docs/deploy.md can't rot: the image gets what it needs, figures are arithmetic."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import yaml

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.cli import parse
from orpheus.codec.snac import SAMPLES_PER_FRAME
from orpheus.format.tokens import FRAME_SLOTS
from tests.support.pages import DOCS, ROOT, table

PAGE, MEASURED = DOCS["deploy"], DOCS["measured"]
TEXT = PAGE.text
INSTRUCTIONS = [
    line.split(maxsplit=1)
    for line in re.sub(r"\\\n\s*", "", (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")).splitlines()
    if line and not line.startswith("#")
]


def instructions(name: str) -> list[str]:
    return [rest for word, rest in INSTRUCTIONS if word == name]


def served(arguments: list[str]):
    from orpheus.serve.command import ServeOptions

    return parse(ServeOptions, arguments)


# ---- the image ----


def image(folder: Path) -> Path:
    """A folder with what the COPY lines of the last stage put into /app, and .dockerignore lets through."""
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert "*" in ignore and "**/__pycache__" in ignore
    folder.mkdir()
    for sources, target in (line.rsplit(maxsplit=1) for line in instructions("COPY")):
        for source in sources.split():
            assert f"!{source}" in ignore, source
            to = folder / (Path(source).name if target == "./" else target)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, to, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, to)
    return folder


def test_the_image_runs_as_nobody_and_gets_the_signals():
    assert instructions("USER") == ["1000"]
    [entry] = map(json.loads, instructions("ENTRYPOINT"))  # the form without a shell
    assert entry[:4] == ["python", "-m", "orpheus", "serve"] and not instructions("CMD")
    options = served([*entry[4:], "--adapter", "None", "--preset", "tiny"])
    assert (options.host, options.port) == ("0.0.0.0", 8000) and instructions("EXPOSE") == ["8000"]
    stages = [line.split(" AS ") for line in instructions("FROM")]
    assert {name for _, name in stages} >= {"packages-cpu", "packages-cuda"}
    assert stages[-1][0] == "packages-${DEVICE}" and instructions("ARG") == ["DEVICE=cpu"]
    python = re.fullmatch(r"python:(\d\.\d+)-slim-\w+", stages[0][0])
    assert python and f"| Python | {python[1]} |" in MEASURED.text


def test_what_the_image_holds_is_enough_to_speak(tmp_path):
    """The image's own command and health check, in a folder with its files alone."""
    app = image(tmp_path / "app")
    port = "18473"
    [entry] = map(json.loads, instructions("ENTRYPOINT"))
    command = [sys.executable, *entry[1:], "--adapter", "None", "--preset", "tiny", "--host", "127.0.0.1"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen([*command, "--port", port], cwd=app, env=environment, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    try:
        assert any("is served on" in line for line in server.stdout)
        check = json.loads(instructions("HEALTHCHECK")[0].split("CMD ", 1)[1])
        healthy = [part.replace(":8000/", f":{port}/") for part in check]
        assert subprocess.run([sys.executable, *healthy[1:]]).returncode == 0
        body = {"model": "tts-1", "input": "It is a sunny day.", "voice": "tara", "response_format": "mp3"}
        spoken = httpx.post(f"http://127.0.0.1:{port}/v1/audio/speech", json=body, timeout=60)
        assert spoken.status_code == 200 and len(spoken.content) > 4000, spoken.text
        assert "<textarea" in httpx.get(f"http://127.0.0.1:{port}/").text
        server.terminate()
        assert server.wait(20) == 0
    finally:
        server.kill()
        server.communicate()
    assert subprocess.run([sys.executable, *healthy[1:]], capture_output=True).returncode != 0


def test_compose_is_careful():
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
    assert {name: s["profiles"] for name, s in compose["services"].items()} == {"cpu": ["cpu"], "cuda": ["cuda"]}
    for name, service in compose["services"].items():
        assert service["build"]["args"] == {"DEVICE": name} and service["build"]["dockerfile"] == "docker/Dockerfile"
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        options = served(service["command"])
        assert str(options.limits.api_key_file) == f"/run/secrets/{service['secrets'][0]}"
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["init"]
        assert int(service["stop_grace_period"].removesuffix("s")) > options.limits.shutdown_seconds
        volumes = [volume.rsplit("lora_model", 1)[-1] for volume in service["volumes"]]
        assert volumes == [":ro", "cache:/cache"]
        assert "HF_HOME=/cache" in " ".join(instructions("ENV"))
    [device] = compose["services"]["cuda"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"] and "deploy" not in compose["services"]["cpu"]
    assert compose["secrets"]["orpheus_keys"]["file"].startswith("${KEYS:?")


# ---- the page ----


def test_its_figures_for_prometheus_are_the_server_s():
    from orpheus.serve.admission import Admission
    from orpheus.serve.counts import Counts

    figures = {s for s in PAGE.spans if s.startswith("orpheus_")}
    text = Counts(Admission(1, 1)).text()[0].decode()
    assert len(figures) >= 6 and all(f"# HELP {f} " in text for f in figures), figures


def test_its_options_and_limits_are_the_server_s():
    from orpheus.serve.options import ServerOptions

    options = {f"--{f.name.replace('_', '-')}": f for f in dataclasses.fields(ServerOptions)}
    named = set(re.findall(r"`(--max-\w+|--shutdown-\w+|--allow-\w+)`", TEXT))
    assert named and named <= set(options)
    assert f"`--shutdown-seconds` ({ServerOptions().shutdown_seconds:g})" in TEXT


def test_its_figures_are_arithmetic():
    rate = FRAME_SLOTS * SAMPLE_RATE_HZ / SAMPLES_PER_FRAME
    assert f"**{rate:.2f} tokens a second**" in TEXT
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith("|")]
    gpus = [row for row in rows if row[0] in ("T4", "L4", "A100", "H100", "H200")]
    assert len(gpus) == 5
    for _, memory, speed, steps, steps_4bit, fit in gpus:
        gb, tb = float(memory.split()[0]), float(speed.split()[0])
        found = [int(cell.split(":")[0].replace(",", "")) for cell in (steps, steps_4bit, fit)]
        assert found == [round(tb * 1000 / 6.6), round(tb * 1000 / 2.4), int((0.9 * gb - 6.6 - 0.08) / 0.16)], memory
        assert ("not real time" in steps) == (found[0] < rate)
    listeners_of = {row["tokens a second"]: row["listeners at once"] for row in table(MEASURED, "where")}
    for tokens, listeners in (("9.2", "0.11"), ("5.2", "0.06"), ("1.3", "0.02")):
        assert f"{float(tokens) / rate:.2f}" == listeners
        said = [at_once for speed, at_once in listeners_of.items() if speed.startswith(tokens)]
        assert said == [f"{listeners} a core"] and MEASURED.text.count(tokens) >= 2
    frame_s = SAMPLES_PER_FRAME / SAMPLE_RATE_HZ
    assert listeners_of["26 ms a frame"] == f"{frame_s / 0.026:.1f} a core" and "(26 ms a frame" in MEASURED.text
    assert f"{1 / (rate * 10e-6):,.0f}"[:3] == "1,2" and "1,200 a core" in listeners_of.values()


def test_the_proxies_pass_speech_on_at_once():
    [nginx], [caddy], [yml] = ([b.code for b in PAGE.blocks(name)] for name in ("nginx", "caddy", "yaml"))
    for line in ("proxy_buffering off;", "proxy_http_version 1.1;", "location = /metrics { return 404; }"):
        assert line in nginx
    assert "flush_interval" not in caddy and "respond /metrics 404" in caddy  # with -1 it would not hang up behind
    prometheus = yaml.safe_load(yml)
    assert prometheus["scrape_configs"][0]["authorization"]["credentials_file"]
