"""Training audio written by make_corpus.py: random windows, and the codes of every utterance."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from codec_parts import FRAME
from fast_ops import speed_up

sys.path.insert(0, str(Path(__file__).parents[2]))
from orpheus.codec.snac import SnacCodec
from orpheus.format.tokens import Codes


class AudioSet:
    """The folder's samples (memory-mapped) with the voice and the text of each utterance, and where its words end."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.samples = np.memmap(folder / "audio.i16", np.int16, "r")
        with open(folder / "index.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self.spans = [(int(row["start"]), int(row["stop"])) for row in rows]
        self.voices = [row["voice"] for row in rows]
        self.texts = [row["text"] for row in rows]
        self.word_ends_s = [[float(end_s) for end_s in row["word_ends_s"].split()] for row in rows]
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.spans)

    def utterance(self, i: int) -> np.ndarray:
        """Utterance `i` as float32, padded with zeros to whole frames."""
        start, stop = self.spans[i]
        x = self.samples[start:stop].astype(np.float32) / 32767
        return np.pad(x, (0, -len(x) % FRAME))

    def windows(self, count: int, n: int) -> np.ndarray:
        """[count, n] random stretches of the whole set."""
        starts = self.rng.integers(0, self.spans[-1][1] - n, count)
        return np.stack([self.samples[a : a + n] for a in starts]).astype(np.float32) / 32767

    @torch.no_grad()
    def latents(self, encoder: torch.nn.Module, seconds: float) -> torch.Tensor:
        """[C, T] encoder outputs of random utterances, `seconds` in all."""
        device = next(encoder.parameters()).device
        parts, total = [], 0.0
        for i in self.rng.permutation(len(self)):
            x = torch.from_numpy(self.utterance(int(i))).to(device)
            parts.append(encoder(x[None, None])[0])
            total += len(x) / 24_000
            if total > seconds:
                break
        return torch.cat(parts, 1)

    def codes(self, model: Any, cache: Path) -> list[Codes]:
        """The codes of every utterance, kept in `cache`."""
        if not cache.exists():
            codec = SnacCodec.from_model(speed_up(model))
            found: list[list[np.ndarray]] = []
            while len(found) < len(self):
                some = range(len(found), min(len(found) + 1000, len(self)))
                found += [[c.astype(np.int16) for c in codes] for codes in codec.encode([*map(self.utterance, some)])]
                print(f"encoded {len(found)} of {len(self)} utterances", flush=True)
            frames = np.array([len(c[0]) for c in found])
            flat = {f"level{k}": np.concatenate([c[k] for c in found]) for k in range(3)}
            np.savez(cache, frames=frames, **flat)
        stored = np.load(cache)
        levels, ends = [stored[f"level{k}"] for k in range(3)], np.cumsum(stored["frames"])
        spans = zip(ends - stored["frames"], ends, strict=True)
        return [Codes(levels[0][a:b], levels[1][2 * a : 2 * b], levels[2][4 * a : 4 * b]) for a, b in spans]

    def windows_with_codes(self, codes: list[Codes], count: int, frames: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """[count, frames * 2048] audio of random places and its three code arrays [count, ...]."""
        audio: list[np.ndarray] = []
        window: list[list[np.ndarray]] = [[], [], []]
        while len(audio) < count:
            i = int(self.rng.integers(len(codes)))
            spare = len(codes[i][0]) - frames
            if spare < 0:
                continue
            at = int(self.rng.integers(spare + 1))
            audio.append(self.utterance(i)[at * FRAME : (at + frames) * FRAME])
            for level in range(3):
                scale = 2**level
                window[level].append(codes[i][level][at * scale : (at + frames) * scale].astype(np.int64))
        return np.stack(audio), [np.stack(c) for c in window]
