"""A voice behind one address, spoken by as many replicas as there are GPUs: Ray Serve.

    pip install "ray[serve]"
    python examples/ray_serve.py --adapter lora_model --replicas 4 --gpus 1
    curl -s http://127.0.0.1:8000 -d '{"text": "Hey there, <giggles> how are you?"}' -o spoken.wav

Each replica is a process with a whole `OrpheusInference`; Ray Serve hands each request to the least busy one. Where
several requests come for each GPU, take an engine that batches them (`docs/engines.md`): vLLM or a server.
The answer streams: a WAV header of unknown length, then samples as soon as they are final.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from orpheus.audio.recordings import pcm16, wav_header
from orpheus.config import VoiceOptions
from orpheus.errors import UserError
from orpheus.speak.inference import load_voice


@serve.deployment
class Voice:
    """One replica: loads the voice once, then speaks one text for each request."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.tts = load_voice(VoiceOptions(**options))

    async def __call__(self, request: Request) -> Response:
        """Body: {"text": ..., "voice": ..., "seed": ...}; the last two may be left out."""
        try:
            body = await request.json()
            unknown = sorted(set(body) - {"text", "voice", "seed"})
            if unknown or "text" not in body:
                raise UserError(f"the request has {', '.join(body)}: expected text, and perhaps voice and seed")
            pieces = self.speak(body["text"], body.get("voice"), body.get("seed"))
            first = next(pieces)  # what is wrong with a text shows here, while a status can still say so
        except (UserError, ValueError, TypeError) as error:
            return JSONResponse({"error": str(error)}, status_code=400)

        def whole() -> Iterator[bytes]:
            yield wav_header(None) + first
            yield from pieces

        return StreamingResponse(whole(), media_type="audio/wav")

    def speak(self, text: str, voice: str | None, seed: int | None) -> Iterator[bytes]:
        """The samples as 16-bit PCM, piece by piece."""
        for chunk in self.tts.stream(text, voice, seed=seed):
            yield pcm16(chunk)


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", help="folder of the adapter; without it the preset's base speaks")
    parser.add_argument("--preset", default="auto", help="orpheus-3b, tiny or auto")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--gpus", type=float, default=0, help="GPUs for each replica; 0.5 puts two on one GPU")
    arguments = parser.parse_args()
    voice = Voice.options(num_replicas=arguments.replicas, ray_actor_options={"num_gpus": arguments.gpus})
    serve.start(http_options={"host": "127.0.0.1", "port": 8000})
    serve.run(voice.bind({"adapter": arguments.adapter, "preset": arguments.preset}), blocking=True)


if __name__ == "__main__":
    main()
