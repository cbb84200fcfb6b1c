"""Ask the speech server for one text, and keep what comes while it comes. Start the server first: orpheus serve

python examples/serve_client.py "Hello there. <laugh>" --out hello.wav
"""

import argparse
import time
from pathlib import Path

import httpx

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("text")
parser.add_argument("--server", default="http://127.0.0.1:8000")
parser.add_argument("--voice", default="default")
parser.add_argument("--out", type=Path, default=Path("hello.wav"), help=".wav, .mp3, .opus, .aac, .flac or .pcm")
arguments = parser.parse_args()

asked = {"model": "tts-1", "input": arguments.text, "voice": arguments.voice,
         "response_format": arguments.out.suffix.removeprefix(".")}  # fmt: skip
started = time.monotonic()
with httpx.stream("POST", f"{arguments.server}/v1/audio/speech", json=asked, timeout=300) as answer:
    if answer.status_code != 200:
        raise SystemExit(f"error: {answer.read().decode()}")
    with arguments.out.open("wb") as file:
        for number, chunk in enumerate(answer.iter_bytes()):
            if number == 0:
                print(f"first bytes after {time.monotonic() - started:.2f} s")
            file.write(chunk)
print(f"{arguments.out}: {arguments.out.stat().st_size} bytes after {time.monotonic() - started:.2f} s")
