"""Speak two texts in one batch, into generated_audio/.

python examples/speak.py                          # with the adapter in lora_model/
python examples/speak.py --base embedded:tiny_orpheus --voice tara          # with the embedded voice
"""

import argparse

from orpheus import OrpheusInference

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--adapter", default="lora_model", help="folder of the adapter")
parser.add_argument("--base", help="speak with this base model alone")
parser.add_argument("--voice", help="who speaks; default: the voice that was trained")
arguments = parser.parse_args()

tts = OrpheusInference(None if arguments.base else arguments.adapter, arguments.base)
texts = ["Oh no, <sighs> not again.", "<laughs> That is the best story."]
for speech in tts.generate(texts, arguments.voice, seed=1, output_dir="generated_audio"):
    print(f"{speech.duration_s:.2f} s, {speech.finish_reason}: {speech.text}")
