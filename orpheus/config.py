"""Every option of the toolkit with its one default. The dataclasses make the command lines and are saved with results.

Imports nothing but the standard library, so `--help` is quick.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from orpheus.errors import UserError

_HERE = Path(__file__).resolve().parent
DATA_DIR = _HERE / "embedded" if (_HERE / "embedded").is_dir() else _HERE.parent / "data"
"""The embedded voice: data/ in a checkout, which an installed package carries as orpheus/embedded/."""
EMBEDDED = "embedded:"
"""Prefix of what comes with the project: 'embedded:tiny_codec' is the folder data/tiny_codec, wherever it lies."""

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
    epochs: float
    max_steps: int  # 0: train for `epochs` instead
    learning_rate: float
    lora_alpha: int
    batch_size: int
    gradient_accumulation: int
    backend: Literal["auto", "transformers"]  # the embedded model is too small for Unsloth's kernels to matter


PRESETS = {
    "orpheus-3b": Preset(
        name="orpheus-3b",
        base=HUB_BASE,
        codec=HUB_CODEC,
        dataset=HUB_CORPUS,
        epochs=1,
        max_steps=0,
        learning_rate=2e-4,
        lora_alpha=64,
        batch_size=1,
        gradient_accumulation=4,
        backend="auto",
    ),
    "tiny": Preset(
        name="tiny",
        base=f"{EMBEDDED}tiny_orpheus",
        codec=f"{EMBEDDED}tiny_codec",
        dataset=f"{EMBEDDED}corpus",
        epochs=3,
        max_steps=0,
        learning_rate=7e-4,
        lora_alpha=64,
        batch_size=8,
        gradient_accumulation=1,
        backend="transformers",
    ),
}
PresetName = Literal["auto", "orpheus-3b", "tiny"]
EngineName = Literal["auto", "torch", "llamacpp", "remote", "vllm"]
DraftName = Literal["none", "4bit"]
RecogniserName = Literal["auto", "whisper", "pocketsphinx", "none"]
Decoding = Literal["strict", "framed"]
"""What a token is drawn from. SNAC frames have seven slots with 4096 ids each, and speech may end after any frame.

`strict` is the model's own distribution, over the whole vocabulary. An utterance ends at the first id that may not
stand where it was drawn: end_of_speech between two frames, or an id out of range, where it breaks off.

`framed` computes and draws from the ids that may stand there alone: the slot's, and end_of_speech between two frames.
No id out of range can occur, and the output head reads a fortieth of its weights. At each step it draws as `strict`
would if illegal ids were thrown away and drawn again; at temperature 0 it takes the best legal id. With top_p below 1
the nucleus holds top_p of the legal mass, that of `strict` top_p of all mass. The penalty acts on each seen id alike.
"""


def embedded_path(name: str) -> str:
    """'embedded:NAME' as the path of that folder; any other name or path as it is."""
    return str(DATA_DIR / name.removeprefix(EMBEDDED)) if name.startswith(EMBEDDED) else name


def resolve_preset(name: str, has_gpu: bool) -> Preset:
    """The preset by name; `auto` is `orpheus-3b` with a CUDA GPU and `tiny` without. Unknown name: UserError."""
    if name == "auto":
        name = "orpheus-3b" if has_gpu else "tiny"
    if name not in PRESETS:
        raise UserError(f"unknown preset '{name}': expected one of auto, {', '.join(PRESETS)}")
    return PRESETS[name]


def check_ranges(options: Any, **ranges: tuple[float, float]) -> None:
    """UserError for the first option that is outside its range (both ends allowed); None, not given, passes."""
    for name, (least, most) in ranges.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:  # NaN is in no range
            expected = f"{least:g} or more" if most == math.inf else f"{least:g}..{most:g}"
            raise UserError(f"{name} is {value}, expected {expected}")


@dataclass(frozen=True)
class CorpusOptions:
    """Where the recordings come from and which of them are fit to train on."""

    dataset: str | None = None
    """Hub data set id, or a folder: a table (CSV, TSV, JSON lines, LJSpeech), 1.txt beside 1.wav, Parquet, a saved data
    set. Default: the preset's."""
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

    def __post_init__(self) -> None:
        many, below_1 = (0, math.inf), math.nextafter(1, 0)
        check_ranges(self, limit=many, min_seconds=many, max_rejected=(0, 1), validation_share=(0, below_1))


@dataclass(frozen=True)
class LoraOptions:
    """The adapter, in peft's names. r 64, alpha 64 is Unsloth's Orpheus notebook; rsLoRA with r 32 is Canopy's."""

    r: int = 64
    """Rank of the adapter."""
    lora_alpha: int | None = None
    """Scale of the adapter. Default: the preset's."""
    lora_dropout: float = 0.0
    """Dropout inside the adapter."""
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear layers that get an adapter. lm_head and embed_tokens are tied in Orpheus and are refused."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r."""


@dataclass(frozen=True)
class TrainOptions:
    """How to train. The defaults are Unsloth's Orpheus notebook; the preset's figures stand in for None."""

    epochs: float | None = None
    """Passes over the corpus; ignored when max-steps is above 0. Default: the preset's."""
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
    replay: int = 0
    """Mix in N utterances that the base speaks itself, with its own tags and voices, so that it keeps them; 0: none."""
    gradient_checkpointing: bool | None = None
    """Recompute activations to save memory. Default: on with a GPU."""
    eval_every: int = 50
    """Steps between validation losses; 0: at the end only."""
    save_every: int = 100
    """Steps between checkpoints; 0: none."""
    gate_every: int = 0
    """Steps between gates: the adapter speaks some texts as it stands, and the best is kept, not the last. 0: none."""
    patience: int = 0
    """With gates: stop when so many in a row are each worse than the one before. 0: never; the best is kept anyway."""
    log_every: int = 5
    """Steps between log lines."""
    resume: bool = False
    """Go on from the last checkpoint in the output folder; where that training is done already, speak its samples."""
    seed: int = 3407
    """Seed of the data order, the split and the adapter's first weights."""
    push_to_hub: bool = False
    """Upload the adapter to `hub-repo-id`, a private repository, when training is done. Off: nothing is uploaded."""
    hub_repo_id: str | None = None
    """Where push-to-hub uploads to: 'owner/name'."""

    def __post_init__(self) -> None:
        some, many = (0, math.inf), (1, math.inf)
        check_ranges(self, epochs=(1e-6, math.inf), max_steps=some, learning_rate=(1e-12, 1), batch_size=many,
                     gradient_accumulation=many, max_seq_length=many, warmup_steps=some, weight_decay=(0, 1),
                     replay=some, eval_every=some, save_every=some, gate_every=some, patience=some,
                     log_every=many, seed=(0, 2**32 - 1))  # fmt: skip


@dataclass(frozen=True)
class ModelOptions:
    """Which base and codec, and how to load them."""

    preset: PresetName = "auto"
    """orpheus-3b (hub ids, GPU), tiny (embedded, CPU), or auto: by whether a CUDA GPU is present."""
    base: str | None = None
    """Base model: hub id or folder. Default: the preset's."""
    codec: str | None = None
    """SNAC codec: hub id or folder. Default: the base's own."""
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
    overwrite: bool = False
    """Replace a finished adapter in the output folder. Off: it is kept, and the training refused."""
    overwrite_samples: bool = False
    """Start at output_0.wav again instead of numbering on after the files that exist."""


def filled(options: SftOptions, has_gpu: bool) -> SftOptions:
    """The options with every None replaced by its preset's figure; this is what runs and what is saved."""

    def fill(part: Any, **defaults: Any) -> Any:
        missing = {name: value for name, value in defaults.items() if getattr(part, name) is None}
        return dataclasses.replace(part, **missing)

    p = resolve_preset(options.model.preset, has_gpu)
    backend = p.backend if options.model.backend == "auto" else options.model.backend
    return dataclasses.replace(
        options,
        model=dataclasses.replace(fill(options.model, base=p.base, codec=p.codec), preset=p.name, backend=backend),
        corpus=fill(options.corpus, dataset=p.dataset),
        lora=fill(options.lora, lora_alpha=p.lora_alpha),
        train=fill(options.train, max_steps=p.max_steps, epochs=p.epochs, learning_rate=p.learning_rate,
                   batch_size=p.batch_size, gradient_accumulation=p.gradient_accumulation,
                   gradient_checkpointing=has_gpu),
    )  # fmt: skip


@dataclass(frozen=True)
class VoiceOptions:
    """Whose voice speaks: base, adapter, codec, and where they run."""

    adapter: str | None = "lora_model"
    """Folder of the trained adapter. With --no-adapter the base model speaks alone."""
    preset: PresetName = "auto"
    """Where base and codec come from when there is no adapter: orpheus-3b (hub, GPU), tiny (embedded), auto."""
    base: str | None = None
    """Base model: hub id, folder, or an exported .gguf file. Default: the one the adapter was trained on."""
    codec: str | None = None
    """SNAC codec: hub id or folder. Default: the one the adapter was trained with, or the base's own."""
    engine: EngineName = "auto"
    """What computes: torch, llamacpp (.gguf files), remote (--server), vllm, or auto: by what base and server are."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    load_in_4bit: Literal["auto", "yes", "no"] = "auto"
    """Quantise the base to 4 bit; auto: on a GPU with less than 12 GiB free. A .gguf file is what it is."""
    draft: DraftName = "none"
    """4bit: a 4-bit copy guesses ahead and the 16-bit model judges: the same voice, quicker for one text on a CPU."""
    threads: int = 0
    """llama.cpp: processor threads; 0: all cores that this process may use."""
    gpu_layers: int = -1
    """llama.cpp: layers on the GPU; -1: all of them where it was built for one."""
    server: str | None = None
    """remote: address of a completions server, like http://127.0.0.1:8000 (docs/engines.md)."""
    server_model: str | None = None
    """remote: the name under which it serves the voice. Default: its only model."""

    def __post_init__(self) -> None:
        check_ranges(self, threads=(0, math.inf), gpu_layers=(-1, math.inf))


class Default(float):
    """A figure that nobody asked for: a base that carries its own takes its place."""


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn. The defaults are Canopy's and Unsloth's, but for a base that carries its own."""

    temperature: float = Default(0.6)
    """0 takes the most likely token; higher is livelier and less stable."""
    top_p: float = Default(0.95)
    """Nucleus: draw among the most likely tokens that together hold this probability."""
    repetition_penalty: float = Default(1.1)
    """Divides the score of tokens already seen; 1 turns it off. Below 1.1 natural speech can loop."""
    max_new_tokens: int = 1200
    """Upper bound per utterance; 1200 tokens are 14.6 s."""
    seed: int | None = None
    """Same seed, same audio; None: a fresh one, which is printed and saved."""
    decoding: Decoding = "strict"
    """strict: draw among all ids, stop at one that is no legal code. framed: only among codes that may stand there."""

    def __post_init__(self) -> None:
        if self.decoding not in get_args(Decoding):
            raise UserError(f"decoding is {self.decoding!r}, expected {' or '.join(get_args(Decoding))}")
        check_ranges(self, temperature=(0, 10), top_p=(1e-6, 1), repetition_penalty=(0.5, 10),
                     max_new_tokens=(1, math.inf), seed=(0, 2**63 - 1))  # fmt: skip

    def over(self, own: Mapping[str, float]) -> SamplingOptions:
        """These options, with a base's `own` figures in place of those that nobody asked for."""
        taken: dict[str, Any] = {name: own[name] for name in own if isinstance(getattr(self, name), Default)}
        return dataclasses.replace(self, **taken)


@dataclass(frozen=True)
class ReadingOptions:
    """How a text of any length is spoken, piece by piece."""

    guard: bool = False
    """Watch for runaway tails, loops, long silence and speech too short for its text: trim it, or draw it again."""
    retries: int = 2
    """With --guard: how often a piece may be drawn again with another seed. A seed that is given is kept."""
    carry: bool = False
    """Show the model the end of the piece before, text and codes, so that the voice stays the same."""
    piece_chars: int = 160
    """Characters spoken in one go, whole sentences where possible; a Chinese sign or a digit counts as 3."""

    def __post_init__(self) -> None:
        check_ranges(self, retries=(0, 100), piece_chars=(1, math.inf))


def as_dict(options: Any) -> dict[str, Any]:
    """The options as plain JSON values (paths become strings), for provenance files."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, (tuple, list)):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return plain(options)


def resumable(options: SftOptions) -> dict[str, Any]:
    """The options that a resumed training must share with the interrupted one: all that shape the result."""
    free = ("resume", "log_every", "eval_every", "save_every", "gate_every", "patience", "push_to_hub", "hub_repo_id")
    return {
        "load_in_4bit": options.model.load_in_4bit,
        "validation_share": options.corpus.validation_share,
        **as_dict(options.lora),
        **{name: value for name, value in as_dict(options.train).items() if name not in free},
    }
