"""Builders of tiny seeded models in the real format: a tokenizer with every Orpheus token and a two-layer Llama."""

from __future__ import annotations

from pathlib import Path

from orpheus.format.tokens import CODEBOOK_SIZE, CUSTOM, CUSTOM_TOKEN, FRAME_SLOTS, TokenLayout

CUSTOM_TOKENS = CUSTOM["audio_start"] + FRAME_SLOTS * CODEBOOK_SIZE


def build_tokenizer(adds_bos: bool = True):
    """A byte-level tokenizer with Llama 3's control tokens and all custom tokens, in the published order."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    control = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    custom = [CUSTOM_TOKEN.format(k) for k in range(CUSTOM_TOKENS)]
    vocabulary = {token: i for i, token in enumerate(alphabet + control + custom)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(control)
    if adds_bos:
        bos = control[0]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=control[0],
        eos_token=control[1],
        pad_token=CUSTOM_TOKEN.format(CUSTOM["pad"]),
    )


def build_base(layout: TokenLayout, seed: int = 0, **overrides):
    """A random Llama with tied embeddings and llama3 rope scaling, like Orpheus in everything but size."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, head_dim=16, max_position_embeddings=16384,
                 tie_word_embeddings=True)  # fmt: skip
    rope = dict(rope_type="llama3", rope_theta=500000.0, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=8192)  # fmt: skip
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=layout.audio_end, rope_parameters=rope,
                         bos_token_id=layout.bos, eos_token_id=layout.end_of_text, pad_token_id=layout.pad,
                         **(sizes | overrides))  # fmt: skip
    return LlamaForCausalLM(config).eval()


def build_speaking_base(layout: TokenLayout, seed: int = 0, ends: float = 1.2):
    """A random Llama that speaks: each slot follows the one before it, and speech ends after some frames.

    The direction of a slot is in the embeddings of its ids, and in the rows of the output head of the next slot's. All
    else is random, and large enough for every id to change what follows. ends: how likely the end is.
    """
    import torch

    model = build_base(layout, seed, tie_word_embeddings=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter *= 5
        head, embedding = model.lm_head.weight, model.model.embed_tokens.weight
        embedding *= 2
        head *= 2
        directions = torch.linalg.qr(torch.randn(embedding.shape[1], FRAME_SLOTS))[0].T
        embedding[layout.start_of_speech] += 3 * directions[-1]
        head[layout.end_of_speech] += 5 * ends * directions[-1]
        for slot in range(FRAME_SLOTS):
            ids = layout.slot_range(slot)
            embedding[ids.start : ids.stop] += 3 * directions[slot]
            head[ids.start : ids.stop] += 5 * directions[slot - 1]
    return model


def speaking_engine(tokenizer, layout: TokenLayout, **options):
    """A TorchEngine with it, in double precision: rounding makes no two ids equally likely."""
    import torch

    from orpheus.engines.torch.engine import TorchEngine
    from orpheus.model.base import LoadedModel

    model = build_speaking_base(layout, **options).double()
    return TorchEngine(LoadedModel(model, tokenizer, layout, "random", "transformers", False, torch.float64, None, (),
                                   ()))  # fmt: skip


def save_base(folder: Path, seed: int = 0, **overrides) -> Path:
    """Write a tiny base model with its tokenizer, as a user would have it on disk."""
    tokenizer = build_tokenizer()
    build_base(TokenLayout.from_tokenizer(tokenizer), seed, **overrides).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
