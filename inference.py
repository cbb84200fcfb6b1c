"""Speak tagged prompts with a voice you trained: the same as `orpheus speak`.

    python inference.py                                        # three sample prompts -> generated_audio/
    python inference.py "Oh no, <sighs> not again." "<laughs> Yes!"
    python inference.py --voice tara --file lines.txt --out wavs
    echo "Hello there." | python inference.py
    python inference.py "Hello there." --out hello.mp3
    python inference.py --stream "A WAV that grows while it is spoken."
    python inference.py --pcm "Hello there." | aplay -f S16_LE -r 24000
    python inference.py --file book.txt --long --guard

In a notebook:

    from inference import OrpheusInference
    tts = OrpheusInference("lora_model")
    tts.generate("Hey there, <giggles> how are you?")[0]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orpheus.cli import run
from orpheus.tools.speak import SpeakOptions, main

if TYPE_CHECKING:
    from orpheus.speak.inference import OrpheusInference as OrpheusInference


def __getattr__(name: str) -> Any:
    """`from inference import OrpheusInference` works, and `--help` stays quick: PyTorch loads when it is needed."""
    if name == "OrpheusInference":
        from orpheus.speak.inference import OrpheusInference

        return OrpheusInference
    raise AttributeError(f"module 'inference' has no attribute '{name}'")


if __name__ == "__main__":
    run(main, SpeakOptions, __doc__)
