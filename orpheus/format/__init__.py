"""What a sequence is. In: texts, codes. Out: prompts and token ids, and back. No PyTorch.

Read tokens, then prompt, then pieces (long texts).
"""
