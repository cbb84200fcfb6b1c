"""A voice behind one address, spoken by as many replicas as there are GPUs (Ray Serve: pip install "ray[serve]").

python examples/ray_serve.py --adapter lora_model --replicas 4 --gpus 1
"""

import argparse
import itertools

from ray import serve
from starlette import requests, responses

from orpheus.audio.recordings import pcm16, wav_header
from orpheus.config import VoiceOptions
from orpheus.speak.inference import load_voice


@serve.deployment
class Voice:
    def __init__(self, adapter: str | None, preset: str) -> None:  # each replica loads the voice once
        self.tts = load_voice(VoiceOptions(adapter=adapter, preset=preset))

    async def __call__(self, request: requests.Request) -> responses.Response:
        try:
            asked = {"text": "", **await request.json()}  # and what else `stream` takes
            chunks = self.tts.stream(asked.pop("text"), **asked)
            first = wav_header(None) + pcm16(next(chunks))  # a wrong text shows now, while a status can still say so
        except (TypeError, ValueError) as error:
            return responses.JSONResponse({"error": str(error)}, status_code=400)
        return responses.StreamingResponse(itertools.chain([first], map(pcm16, chunks)), media_type="audio/wav")


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--adapter", help="folder of the adapter; without it the preset's base speaks")
parser.add_argument("--preset", default="auto")
parser.add_argument("--replicas", type=int, default=1)
parser.add_argument("--gpus", type=float, default=0, help="GPUs for each replica; 0.5 puts two on one GPU")
told = parser.parse_args()
serve.start(http_options={"host": "127.0.0.1"})
voice = Voice.options(num_replicas=told.replicas, ray_actor_options={"num_gpus": told.gpus})
serve.run(voice.bind(told.adapter, told.preset), blocking=True)
