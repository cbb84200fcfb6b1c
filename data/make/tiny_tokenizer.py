"""The tokenizer of the tiny Orpheus: Llama-3's kind of byte-level BPE, then the control tokens and the audio tokens.

Any text round-trips, because the alphabet is all 256 bytes. The tokenizer adds one `<|begin_of_text|>` itself, as
Llama-3's does. `<custom_token_k>` has id base + k for k = 0 ... 28681; the audio tokens are plain vocabulary
entries (not "added tokens": that would make tokenizer.json four times as large).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, END_OF_TEXT, END_OF_TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
CUSTOM_TOKENS = 10 + 7 * 4096
# Llama-3's own splitting into words, numbers and punctuation.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_tokenizer(whole: list[str], texts: list[str], merges: int = 200) -> PreTrainedTokenizerFast:
    """A tokenizer for which each word of `whole`, as it is written there, with its space, is one piece; other words are
    put together from `merges` pieces learnt from `texts`, and from bytes."""
    import json

    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    def pipeline(model: models.BPE) -> Tokenizer:
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    learnt = pipeline(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=256 + merges, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    learnt.train_from_iterator(texts, trainer)
    bpe = json.loads(learnt.to_str())["model"]
    vocabulary: dict[str, int] = bpe["vocab"]
    for text in whole:
        for piece, _ in learnt.pre_tokenizer.pre_tokenize_str(text):
            vocabulary.setdefault(piece, len(vocabulary))
    control = [BOS, END_OF_TEXT, END_OF_TURN] + [f"<custom_token_{k}>" for k in range(10)]
    for token in control + [f"<custom_token_{k}>" for k in range(10, CUSTOM_TOKENS)]:
        vocabulary[token] = len(vocabulary)
    tokenizer = pipeline(
        models.BPE(vocab=vocabulary, merges=[tuple(pair) for pair in bpe["merges"]], ignore_merges=True)
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, vocabulary[BOS])]
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END_OF_TURN,
        pad_token="<custom_token_7>",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
