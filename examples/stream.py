"""Speak one text while it is made, as raw samples on standard output: the first after a quarter of a second of speech.

python examples/stream.py "Hello there." | aplay -f S16_LE -r 24000         # with the adapter in lora_model/
python examples/stream.py --base embedded:tiny_orpheus "tara: Hello there." > hello.raw
"""

import argparse
import sys

from orpheus import OrpheusInference
from orpheus.audio.recordings import pcm16

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("text")
parser.add_argument("--adapter", default="lora_model", help="folder of the adapter")
parser.add_argument("--base", help="speak with this base model alone")
arguments = parser.parse_args()

tts = OrpheusInference(None if arguments.base else arguments.adapter, arguments.base)
for chunk in tts.stream(arguments.text, seed=1):  # float32 [n], 24 kHz
    sys.stdout.buffer.write(pcm16(chunk))
    sys.stdout.buffer.flush()
