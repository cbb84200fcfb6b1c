"""Check and encode a data set before you train on it, without loading the model; or make one of raw recordings.

    orpheus prepare --dataset my_recordings
    orpheus prepare --preset tiny
    accelerate launch --num_processes 8 -m orpheus prepare --dataset my_recordings    # each GPU encodes a part
    orpheus prepare long_recordings --out my_voice             # cut at pauses, with texts: a data set, for the above

It prints what training would print of the recordings, writes which were left out and which are worth a look into a
report, and leaves the codes in the cache, where training finds them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from orpheus.codec.snac import SnacCodec, find_local
from orpheus.config import CorpusOptions, PresetName, TrainOptions, check_ranges
from orpheus.data.corpus import encode_part, prepare
from orpheus.data.early import check_source
from orpheus.data.encoding import Part
from orpheus.data.raw import command
from orpheus.data.raw.options import RawOptions
from orpheus.errors import UserError, check_folder
from orpheus.format.prompt import Renderer
from orpheus.format.tokens import TokenLayout
from orpheus.model.base import check_device, load_tokenizer, pick_device, preset_of
from orpheus.model.hub import local_folder
from orpheus.model.pairs import codec_of
from orpheus.processes import rank, world_size


@dataclass(frozen=True)
class PrepareOptions:
    """Check and encode a data set, and report what is wrong with the recordings."""

    preset: PresetName = "auto"
    """orpheus-3b (hub ids, GPU), tiny (embedded, CPU), or auto: by whether a CUDA GPU is present."""
    base: str | None = None
    """Base model whose tokenizer counts the tokens: hub id or folder. Default: the preset's."""
    codec: str | None = None
    """SNAC codec: hub id or folder. Default: the base's own."""
    device: str = "auto"
    """Where the codec runs: auto, cpu, cuda or cuda:N."""
    max_seq_length: int = TrainOptions.max_seq_length
    """Tokens per example; 2048 hold about 24 s. Longer clips are reported and left out, never cut."""
    report: Path = Path("corpus_report.txt")
    """File for the report on all clips."""
    shard: str = ""
    """i/n: encode every n-th clip from the i-th on, into the cache, and nothing else; a run without it then finds all
    codes. Default: all clips, or under accelerate launch each process its own part."""
    corpus: CorpusOptions = field(default_factory=CorpusOptions)
    raw: RawOptions = field(default_factory=RawOptions)

    def __post_init__(self) -> None:
        check_ranges(self, max_seq_length=(1, math.inf))


def main(options: PrepareOptions) -> None:
    """Recordings -> checked -> codes in the cache, and a report."""
    part = check(options)
    if options.raw.out:
        return print(command.run(str(options.corpus.dataset), options.raw))
    preset = preset_of(options.preset)
    tokenizer = load_tokenizer(options.base or preset.base)
    suited = options.codec or (codec_of(options.base) if options.base else preset.codec)
    codec = SnacCodec.load(suited, pick_device(options.device))
    chosen = replace(options.corpus, dataset=options.corpus.dataset or preset.dataset)
    renderer = Renderer(tokenizer, TokenLayout.from_tokenizer(tokenizer))
    if part.count > 1:
        clips, rejections = encode_part(part, chosen, codec, renderer, max_seq_length=options.max_seq_length)
        hours = sum(clip.seconds for clip in clips) / 3600
        print(f"shard {part.index} of {part.count}: {len(clips)} clip{'s' * (len(clips) != 1)}, {hours:.3f} h encoded, "
              f"{len(rejections)} unfit; codes: {options.corpus.cache_dir}. When all shards are done, run the same "
              "command without them: it finds the codes and writes the report", flush=True)  # fmt: skip
        return
    corpus = prepare(chosen, codec, renderer, max_seq_length=options.max_seq_length, seed=TrainOptions.seed)
    print(corpus.summary())
    print(f"report: {corpus.save_report(options.report)}, codes: {options.corpus.cache_dir}")
    print(f"hear them before you train, for wrong texts, hum, strangers and more:  orpheus doctor {chosen.dataset}")


def check(options: PrepareOptions) -> Part:
    """Which part of the clips is to be encoded. UserError for what can't work, before PyTorch is loaded."""
    _check_mode(options)
    part = Part.parse(options.shard) if options.shard else Part(rank(), world_size())
    if options.raw.out:
        command.check(options.corpus.dataset, options.raw)
        return part
    check_device(options.device)
    check_source(options.corpus)
    if options.base:
        local_folder(options.base, "base model")
    if options.codec:
        find_local(options.codec)
    check_folder(options.report.parent, "the folder of --report")
    if options.report.is_dir():
        raise UserError(f"--report is {options.report}, which is a folder: name a file in it")
    return part


def _check_mode(options: PrepareOptions) -> None:
    """UserError for an option that is of no use with --out, or without it."""
    if options.raw.out is None:
        if name := _changed(options.raw, RawOptions()):
            raise UserError(f"{name} is for raw recordings, and there is no --out, the folder for their clips: add it, "
                            f"or leave {name} out")  # fmt: skip
        return
    bare = replace(options, raw=RawOptions(), corpus=CorpusOptions())
    corpus = replace(options.corpus, dataset=None)
    if name := _changed(bare, PrepareOptions()) or _changed(corpus, CorpusOptions()):
        raise UserError(f"{name} is for a data set, and --out makes one of raw recordings: leave {name} out here, and "
                        f"give it to  orpheus prepare {options.raw.out}")  # fmt: skip


def _changed(options: Any, default: Any) -> str:
    """The first option that is not as it is by default, as it is written; '' if there is none."""
    names = (f.name for f in fields(options) if getattr(options, f.name) != getattr(default, f.name))
    return next((f"--{name.replace('_', '-')}" for name in names), "")
