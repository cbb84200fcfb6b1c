"""Train an adapter on a folder of recordings, and speak with it.

python examples/train.py --dataset my_recordings
python examples/train.py --max-steps 20                     # a look at it: the preset's data, 20 steps
"""

import argparse

from orpheus import OrpheusInference, train

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--dataset", help="folder with metadata.csv and clips; default: the preset's")
parser.add_argument("--max-steps", type=int, help="default: as many as the preset's epochs take")
parser.add_argument("--output-dir", default="lora_model", help="where the adapter goes")
arguments = parser.parse_args()

summary = train(
    dataset=arguments.dataset,
    max_steps=arguments.max_steps,
    output_dir=arguments.output_dir,
    speak_samples=False,
)
print(f"{summary.steps} steps, training loss {summary.train_loss:.2f}")

tts = OrpheusInference(arguments.output_dir)
[speech] = tts.generate("Hey there, <giggles> how are you?", seed=1)
print("spoken:", speech.save("trained.wav", overwrite=True))
