"""Fine-tune Orpheus TTS with LoRA and speak with it. Importing this package loads nothing heavy."""

__version__ = "0.1.0"
