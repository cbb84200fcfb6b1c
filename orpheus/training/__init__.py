"""LoRA training. In: a base with an adapter, sequences. Out: a trained adapter, curves, checkpoints.

Read trainer, then batches, losses, checkpoints.
"""
