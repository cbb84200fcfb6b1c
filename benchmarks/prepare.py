"""Seconds of audio encoded per second, beside the loop of Unsloth's notebook.

    python benchmarks/prepare.py                        # the published codec's shape, random weights
    python benchmarks/prepare.py --workers 2            # and with two processes of one thread each

Theirs: clip by clip through SNAC's own encoder, then seven `.item()` a frame. Ours: `SnacCodec.encode`, and all of
`python -m orpheus prepare` from WAV files of 44.1 kHz into an empty cache. The contenders take turns; a speed-up is by
processor seconds on a CPU, by the clock on a GPU.
"""

from __future__ import annotations

import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.common import Size, in_turns, model_of, seconds, show
from benchmarks.machine import Span, timed
from benchmarks.smoke import data as smoke_data
from orpheus.cli import run
from orpheus.codec.snac import SnacCodec
from orpheus.errors import UserError
from orpheus.format.tokens import ORPHEUS
from orpheus.model.base import pick_device

RATE_HZ = 44100  # of the files: most recordings have another rate than the codec


@dataclass(frozen=True)
class Options:
    """Measure the preparation of recordings: the encoder, and all of it from files."""

    size: Size = "mid"
    """tiny: the embedded codec. mid, orpheus-3b: the published codec's shape, random weights."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    clips: int | None = None
    """Clips that are encoded. Default: 5, on a GPU 300."""
    clip_s: float | None = None
    """Their mean length in seconds. Default: 4, on a GPU 9."""
    rounds: int = 2
    """Turns of each contender; the best counts."""
    workers: int = 0
    """On a CPU: encode in this many processes of one thread each, too."""
    save: bool = False
    """Write the figures to benchmarks/results/prepare_SIZE.json as well."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.workers < 0 or (self.clips is not None and self.clips < 1):
            raise UserError("rounds and clips are 1 or more, workers 0 or more")


def notebook(codec: SnacCodec, clips: list[np.ndarray]) -> list[list[int]]:
    """The ids of each clip as `tokenise_audio` of Unsloth's Orpheus notebook makes them."""
    import torch

    ids = []
    for clip in clips:
        waveform = torch.from_numpy(clip).unsqueeze(0).unsqueeze(0).to(codec.device)
        with torch.inference_mode():
            codes = codec._model.encode(waveform)
        all_codes: list[int] = []
        for i in range(codes[0].shape[1]):
            for slot, (layer, at) in enumerate(((0, i), (1, 2 * i), (2, 4 * i), (2, 4 * i + 1), (1, 2 * i + 1),
                                                (2, 4 * i + 2), (2, 4 * i + 3))):  # fmt: skip
                all_codes.append(codes[layer][0][at].item() + ORPHEUS.slot_range(slot).start)
        ids.append(all_codes)
    return ids


def ours(codec: SnacCodec, clips: list[np.ndarray]) -> list[list[int]]:
    """The same through `SnacCodec.encode` and `TokenLayout.flatten`."""
    return [ORPHEUS.flatten(codes).tolist() for codes in codec.encode(clips)]


def from_files(codec: SnacCodec, clips: list[np.ndarray]) -> Span:
    """All of the preparation, from files into an empty cache."""
    import soundfile
    import soxr

    from orpheus.config import PRESETS, CorpusOptions, embedded_path
    from orpheus.data.corpus import prepare
    from orpheus.format.prompt import Renderer
    from orpheus.format.tokens import TokenLayout
    from orpheus.model.base import load_tokenizer

    tokenizer = load_tokenizer(embedded_path(PRESETS["tiny"].base))
    renderer = Renderer(tokenizer, TokenLayout.from_tokenizer(tokenizer))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        lines = ["file_name,text"]
        for number, clip in enumerate(clips):
            soundfile.write(root / f"{number}.wav", soxr.resample(clip, 24000, RATE_HZ), RATE_HZ)
            lines.append(f"{number}.wav,Clip number {number}.")
        (root / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        options = CorpusOptions(dataset=folder, cache_dir=root / "codes", validation_share=0.0)
        with timed() as span:
            corpus = prepare(options, codec, renderer, max_seq_length=10**6, seed=0, progress=False)
        if len(corpus.clips) != len(clips):
            raise UserError(f"{len(corpus.rejections)} of the made clips were rejected: {corpus.rejections[0]}")
    return span


_codec: SnacCodec | None = None  # a worker's own


def _start(folder: str) -> None:
    import torch

    global _codec
    torch.set_num_threads(1)
    _codec = SnacCodec.load(folder)


def _encode(clip: np.ndarray) -> int:
    assert _codec is not None
    return _codec.encode([clip])[0].frames


def in_processes(folder: str, clips: list[np.ndarray], workers: int) -> float:
    """Seconds by the clock that `workers` processes of one thread take; they have been started and warmed up."""
    with ProcessPoolExecutor(workers, get_context("spawn"), _start, (folder,)) as pool:
        list(pool.map(_encode, [clips[0]] * workers * 2))
        started = time.perf_counter()
        list(pool.map(_encode, clips))
        return time.perf_counter() - started


def main(options: Options) -> None:
    """Measure and show."""
    import torch

    folder = model_of(options.size, "codec")
    codec = SnacCodec.load(folder, pick_device(options.device))
    on_gpu = codec.device.type == "cuda"
    lengths = smoke_data.durations(options.clips or (300 if on_gpu else 5), options.clip_s or (9.0 if on_gpu else 4.0))
    clips = [smoke_data.clip(length, seed) for seed, length in enumerate(lengths)]
    audio_s = sum(map(len, clips)) / 24000
    ids: dict[str, list[list[int]]] = {}
    spans = in_turns({"notebook": lambda: ids.update(notebook=notebook(codec, clips)),
                      "ours": lambda: ids.update(ours=ours(codec, clips))}, options.rounds, codec.device)  # fmt: skip
    files = from_files(codec, clips)
    rows: list[dict[str, Any]] = []
    for name, span in (("the notebook's loop", spans["notebook"]), ("ours, encoder", spans["ours"]),
                       ("ours, from 44.1 kHz files to the cache", files)):  # fmt: skip
        rows.append({"contender": name, "audio s per s": round(audio_s / span.wall_s, 2),
                     "audio s per processor s": round(audio_s / span.cpu_s, 2)})  # fmt: skip
    if options.workers and not on_gpu:
        rows.append({"contender": f"ours, {options.workers} processes of one thread", "audio s per s": round(
            audio_s / in_processes(folder, clips, options.workers), 2), "audio s per processor s": None})  # fmt: skip
    pairs = list(zip(ids["notebook"], ids["ours"], strict=True))
    equal = sum(a == b for theirs, mine in pairs for a, b in zip(theirs, mine, strict=True))
    show("prepare", options.size, {
        "speedup_vs_loop": round(seconds(spans["notebook"], codec.device) / seconds(spans["ours"], codec.device), 2),
        "share_of_codes_equal": round(equal / sum(len(mine) for _, mine in pairs), 5), "clips": len(clips),
        "audio_s": round(audio_s, 1), "device": str(codec.device), "threads": torch.get_num_threads(),
        "speed_by": "clock" if on_gpu else "processor seconds",
    }, rows, options.save)  # fmt: skip


if __name__ == "__main__":
    run(main, Options, __doc__)
