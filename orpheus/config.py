"""Every option of the toolkit with its one default. The dataclasses make the command lines and are saved with results.

Imports nothing but the standard library, so `--help` is quick.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from orpheus.errors import UserError

PROJECT_DIR = Path(__file__).resolve().parent.parent
DATA_DIR = PROJECT_DIR / "data"

HUB_BASE = "unsloth/orpheus-3b-0.1-ft"
HUB_CODEC = "hubertsiuzdak/snac_24khz"
HUB_CORPUS = "MrDragonFox/Elise"

DEFAULT_PROMPTS = (
    "Hey there my name is Elise, <giggles> and I'm a speech generation model that can sound like a person.",
    "I missed you so much, <sighs> it has been a very long day.",
    "<laughs> That is the funniest story I have ever heard.",
)
"""What the two scripts speak when no text is given; the first is the example of Unsloth's Orpheus notebook."""

VOICES_ENGLISH = ("tara", "leah", "jess", "leo", "dan", "mia", "zac", "zoe")
BASE_VOICES: dict[str, tuple[str, ...]] = {
    HUB_BASE: VOICES_ENGLISH,
    f"{HUB_BASE}-unsloth-bnb-4bit": VOICES_ENGLISH,
    "canopylabs/orpheus-3b-0.1-ft": VOICES_ENGLISH,
    "canopylabs/orpheus-tts-0.1-finetune-prod": VOICES_ENGLISH,
    "canopylabs/3b-fr-ft-research_release": ("pierre", "amelie", "marie"),
    "canopylabs/3b-de-ft-research_release": ("jana", "thomas", "max"),
    "canopylabs/3b-es_it-ft-research_release": ("javi", "sergio", "maria", "pietro", "giulia", "carlo"),
    "canopylabs/3b-ko-ft-research_release": ("유나", "준서"),
    "canopylabs/3b-hi-ft-research_release": ("ऋतिका",),
    "canopylabs/3b-zh-ft-research_release": ("长乐", "白芷"),
}
"""The voices a base was trained on (Canopy's multilingual release). A base not listed here accepts any voice."""


@dataclass(frozen=True)
class Preset:
    """Which base model, codec and data set belong together, and the training figures that suit their size."""

    name: str
    base: str
    codec: str
    dataset: str
    max_steps: int  # 0: train for `epochs` instead
    learning_rate: float
    lora_alpha: int
    batch_size: int
    gradient_accumulation: int


PRESETS = {
    "orpheus-3b": Preset("orpheus-3b", HUB_BASE, HUB_CODEC, HUB_CORPUS, max_steps=0,
                         learning_rate=2e-4, lora_alpha=64, batch_size=1, gradient_accumulation=4),
    "tiny": Preset("tiny", str(DATA_DIR / "tiny_orpheus"), str(DATA_DIR / "tiny_codec"), str(DATA_DIR / "corpus"),
                   max_steps=0, learning_rate=2e-3, lora_alpha=64, batch_size=8, gradient_accumulation=1),
}  # fmt: skip
PresetName = Literal["auto", "orpheus-3b", "tiny"]


def resolve_preset(name: str, has_gpu: bool) -> Preset:
    """The preset by name; `auto` is `orpheus-3b` with a CUDA GPU and `tiny` without. Unknown name: UserError."""
    if name == "auto":
        name = "orpheus-3b" if has_gpu else "tiny"
    if name not in PRESETS:
        raise UserError(f"unknown preset '{name}': expected one of auto, {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True)
class CorpusOptions:
    """Where the recordings come from and which of them are fit to train on."""

    dataset: str | None = None
    """Hub data set id, or a folder: saved data set, metadata.csv / .jsonl, LJSpeech, Parquet. Default: the preset's."""
    split: str = "train"
    """Split of a hub data set."""
    text_column: str = "text"
    """Column with the transcript."""
    audio_column: str = "audio"
    """Column with the recording."""
    voice_column: str = "source"
    """Column with the speaker's name; where a data set has it, prompts are 'voice: text'."""
    limit: int = 0
    """Use only the first N clips; 0 means all."""
    min_seconds: float = 0.3
    """Shorter clips are left out."""
    max_rejected: float = 0.2
    """Stop when a larger share of the clips is unfit (1 = never stop)."""
    validation_share: float = 0.05
    """Share of the clips held out to measure the loss on."""
    cache_dir: Path = Path(".cache/codes")
    """Where encoded clips are kept, so that they are encoded only once."""


@dataclass(frozen=True)
class LoraOptions:
    """The adapter. r 64, alpha 64 is Unsloth's Orpheus notebook; rsLoRA with r 32 is Canopy's."""

    r: int = 64
    """Rank of the adapter."""
    alpha: int | None = None
    """Scale of the adapter. Default: the preset's."""
    dropout: float = 0.0
    """Dropout inside the adapter."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear layers that get an adapter. lm_head and embed_tokens are tied in Orpheus and are refused."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r."""


@dataclass(frozen=True)
class TrainOptions:
    """How to train. The defaults are Unsloth's Orpheus notebook; the preset's figures stand in for None."""

    epochs: float = 1.0
    """Passes over the corpus; ignored when max-steps is set."""
    max_steps: int | None = None
    """Optimiser steps; 0 means train for `epochs`. Default: the preset's."""
    learning_rate: float | None = None
    """Peak learning rate. Default: the preset's."""
    batch_size: int | None = None
    """Clips per forward pass. Default: the preset's."""
    gradient_accumulation: int | None = None
    """Forward passes per optimiser step. Default: the preset's."""
    max_seq_length: int = 2048
    """Tokens per example; 2048 hold about 24 s. Longer clips are reported and left out, never cut."""
    warmup_steps: int = 5
    """Steps over which the learning rate rises."""
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """Shape of the learning rate after the warm-up."""
    weight_decay: float = 0.001
    """Weight decay of AdamW."""
    train_on: Literal["speech", "all"] = "speech"
    """`speech`: loss on the codes and the two end tokens. `all`: on the prompt too, as the notebook does."""
    packing: bool = False
    """Put several clips in one row, each attending only to itself (transformers back end)."""
    gradient_checkpointing: bool | None = None
    """Recompute activations to save memory. Default: on with a GPU."""
    eval_every: int = 50
    """Steps between validation losses; 0: at the end only."""
    save_every: int = 100
    """Steps between checkpoints; 0: none."""
    log_every: int = 5
    """Steps between log lines."""
    resume: bool = False
    """Go on from the last checkpoint in the output folder."""
    seed: int = 3407
    """Seed of the data order, the split and the adapter's first weights."""
    push_to_hub: str | None = None
    """Repository id to upload the adapter to when training is done. Nothing is uploaded unless you give one."""


@dataclass(frozen=True)
class ModelOptions:
    """Which base and codec, and how to load them."""

    preset: PresetName = "auto"
    """orpheus-3b (hub ids, GPU), tiny (embedded, CPU), or auto: by whether a CUDA GPU is present."""
    base: str | None = None
    """Base model: hub id or folder. Default: the preset's."""
    codec: str | None = None
    """SNAC codec: hub id or folder. Default: the preset's."""
    load_in_4bit: bool = True
    """Quantise the base to 4-bit NF4 while training; False loads 16 bit."""
    backend: Literal["auto", "unsloth", "transformers"] = "auto"
    """auto: Unsloth with a CUDA GPU, transformers + peft elsewhere."""


@dataclass(frozen=True)
class SftOptions:
    """Fine-tune Orpheus TTS with LoRA on your voice, save the adapter, speak three samples."""

    model: ModelOptions = field(default_factory=ModelOptions)
    corpus: CorpusOptions = field(default_factory=CorpusOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    output_dir: Path = Path("lora_model")
    """Where the adapter, its provenance, the loss curve and the checkpoints go."""
    samples_dir: Path = Path("generated_audio")
    """Where the spoken samples go."""
    speak_samples: bool = True
    """Speak the default prompts when training is done."""


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn. The defaults are Canopy's and Unsloth's; below 1.1 repetition penalty speech can loop."""

    temperature: float = 0.6
    """0 takes the most likely token; higher is livelier and less stable."""
    top_p: float = 0.95
    """Nucleus: draw among the most likely tokens that together hold this probability."""
    repetition_penalty: float = 1.1
    """Divides the score of tokens already seen; 1 turns it off."""
    max_new_tokens: int = 1200
    """Upper bound per utterance; 1200 tokens are 14.6 s."""
    seed: int | None = None
    """Same seed, same audio. Default: a fresh one, which is printed and saved."""

    def __post_init__(self) -> None:
        checks = (
            ("temperature", self.temperature, 0.0 <= self.temperature <= 10.0, "0..10"),
            ("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "above 0, up to 1"),
            ("repetition_penalty", self.repetition_penalty, 0.5 <= self.repetition_penalty <= 10.0, "0.5..10"),
            ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "1 or more"),
            ("seed", self.seed, self.seed is None or 0 <= self.seed < 2**63, "0 or more"),
        )
        for name, value, good, expected in checks:
            if not good:
                raise UserError(f"{name} is {value}, expected {expected}")


def as_dict(options: Any) -> dict[str, Any]:
    """The options as plain JSON values (paths become strings), for provenance files."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, (tuple, list)):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return plain(options)
