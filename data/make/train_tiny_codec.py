"""Train the tiny SNAC codec on the audio and codes that make_corpus.py writes. CPU or GPU, resumable.

    python train_tiny_codec.py sketch  --audio work/codec --work work --minutes 5 --frames 24 --rate 2e-3
    python train_tiny_codec.py decoder --audio work/codec --work work --minutes 60 --rate 2e-3
    python train_tiny_codec.py ear     --audio work/codec --work work --minutes 7 --batch 6 --frames 24 --rate 3e-3
    python train_tiny_codec.py encoder --audio work/codec --work work --minutes 30 --batch 3 --frames 24 --early 5
    python train_tiny_codec.py rest    --audio work/codec --work work --minutes 15 --batch 6 --frames 24
    python train_tiny_codec.py join    --work work --out work/tiny_codec

The codes are known beforehand (`codebooks`), so encoder and decoder are trained each by itself, side by side if you
like. `ear` and `sketch` teach a half of each what a spectrum is, at a thirtieth of the price; the whole begins there.
`rest` goes on with the encoder's last blocks alone, at a tenth of the price, and puts them back into its state.
Each stage saves its state in --work every few minutes and continues from it (the minutes are those of the whole
stage).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    import torch

FRAME = 2048
SHARPNESS = 60.0  # of the encoder's choice among the entries in training


class AudioSet:
    """The folder's samples (memory-mapped) and the codes that they should have."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.samples = np.memmap(folder / "audio.i16", np.int16, "r")
        stored = np.load(folder / "codes.npz")
        self.levels = [stored[f"level{k}"] for k in range(3)]
        self.rng = np.random.default_rng(seed)

    def places(self, count: int, frames: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """The first frames [count] of random windows, and their code arrays [count, ...]."""
        starts = self.rng.integers(0, len(self.levels[0]) - frames, count)
        codes = [
            np.stack([level[at * rate : (at + frames) * rate] for at in starts]).astype(np.int64)
            for level, rate in zip(self.levels, (1, 2, 4), strict=True)
        ]
        return starts, codes

    def windows(self, count: int, frames: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """[count, frames * 2048] audio of random places, at whole frames, and its code arrays [count, ...]."""
        starts, codes = self.places(count, frames)
        audio = np.stack([self.samples[at * FRAME : (at + frames) * FRAME] for at in starts])
        return audio.astype(np.float32) / 32767, codes


class Stage:
    """What both stages share: the clock, the learning rate, the log and the resumable state."""

    def __init__(self, args: argparse.Namespace, modules: dict[str, torch.nn.Module], rate: float) -> None:
        import torch

        self.args, self.modules, self.rate = args, modules, rate
        self.path = args.work / f"{args.stage}.pt"
        self.parameters = [p for m in modules.values() for p in m.parameters()]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=rate, betas=(0.8, 0.98), weight_decay=1e-3)
        self.step, self.before_s, self.start_s, self.saved_s = 0, 0.0, time.time(), time.time()
        self.extra: dict[str, Any] = {}
        self.history: list[list[float]] = []
        if self.path.exists():
            state = torch.load(self.path, map_location=args.device, weights_only=False)
            for name, module in modules.items():
                module.load_state_dict(state["modules"][name])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.before_s, self.extra = state["step"], state["seconds"], state["extra"]
            print(f"resumed {self.path} at step {self.step}, {self.before_s / 60:.1f} minutes", flush=True)

    @property
    def done(self) -> float:
        """Share of the stage's minutes that is used up."""
        return (self.before_s + time.time() - self.start_s) / (self.args.minutes * 60)

    def update(self, loss: torch.Tensor, figures: list[float], constant_share: float) -> None:
        """One optimiser step; the rate is constant, then falls linearly."""
        import torch

        fade = min(1.0, (1 - self.done) / (1 - constant_share))
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * min(1, (self.step + 1) / 50) * max(0.02, fade)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 3.0)
        self.optimiser.step()
        self.step += 1
        self.history.append(figures)
        if self.step % 100 == 0:
            mean = [sum(column) / len(column) for column in zip(*self.history[-100:], strict=True)]
            with open(self.args.work / f"{self.args.stage}.curve.csv", "a", encoding="utf-8") as curve:
                curve.write(",".join([str(self.step), f"{self.done:.4f}", *(f"{v:.5f}" for v in mean)]) + "\n")
            print(f"step {self.step} {100 * self.done:.1f} %", " ".join(f"{v:.4f}" for v in mean), flush=True)

    def save(self, at_most_every_s: float = 0.0) -> bool:
        """Write the state; True if it was written."""
        import torch

        if time.time() - self.saved_s < at_most_every_s:
            return False
        self.saved_s = time.time()
        state = {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.before_s + time.time() - self.start_s,
            "extra": self.extra,
        }
        torch.save(state, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)
        return True


def new_model(work: Path) -> Any:
    """A SNAC with the fixed codebooks."""
    from codebooks import Codebooks
    from codec_parts import CONFIG, fix_quantiser
    from fast_ops import speed_up
    from snac import SNAC

    model = speed_up(SNAC(**CONFIG))
    fix_quantiser(model.quantizer, Codebooks.load(work / "codebooks.npz").entries)
    return model


def noisy(x: torch.Tensor) -> torch.Tensor:
    """Louder or softer, and rounded to 8 to 16 bits as the embedded corpora are: that must not change the codes."""
    import torch

    bits = torch.randint(8, 17, (len(x), 1), device=x.device)
    return x * (1 + 0.1 * torch.randn(len(x), 1, device=x.device)) + (torch.rand_like(x) - 0.5) * 2.0 ** (1 - bits)


class Hearing:
    """The loss of latents: each level's must point at their entry more than at any other."""

    def __init__(self, model: Any) -> None:
        import torch.nn.functional as F
        from codebooks import SIZES

        self.entries = [
            F.normalize(q.codebook.weight.detach()[:size, :-1])
            for q, size in zip(model.quantizer.quantizers, SIZES, strict=True)
        ]

    def __call__(self, z: torch.Tensor, codes: list[np.ndarray]) -> tuple[torch.Tensor, list[float]]:
        """Loss and the share of right codes in each level."""
        import torch
        import torch.nn.functional as F
        from codec_parts import latent_parts

        loss, right = z.new_zeros(()), []
        edge = 2  # frames at both ends of a window whose sound around is cut off
        for part, rows, targets, rate, weight in zip(
            latent_parts(z), self.entries, codes, (1, 2, 4), (1.0, 1.0, 0.5), strict=True
        ):
            inner = slice(edge * rate, -edge * rate)
            likeness = (F.normalize(part, dim=1).transpose(1, 2)[:, inner] @ rows.t()).flatten(0, 1)
            target = torch.from_numpy(targets).to(z.device)[:, inner].flatten()
            loss = loss + weight * F.cross_entropy(SHARPNESS * likeness, target)
            loss = loss + 2 * (1 - likeness.gather(1, target[:, None]).mean())
            right.append(float((likeness.argmax(1) == target).float().mean()))
        return loss, right


def train_ear(args: argparse.Namespace, audio: AudioSet) -> None:
    """The encoder's last blocks, from pictures."""
    import torch
    from codec_parts import Ear, Picture

    model = new_model(args.work).to(args.device)
    ear, picture, hearing = Ear(model.encoder).to(args.device), Picture().to(args.device), Hearing(model)
    stage = Stage(args, {"ear": ear}, rate=args.rate)
    while stage.done < 1:
        x, codes = audio.windows(args.batch, args.frames)
        with torch.no_grad():
            seen = picture(noisy(torch.from_numpy(x).to(args.device)))
        loss, right = hearing(ear(seen), codes)
        stage.update(loss, [float(loss.detach()), *right], constant_share=0.4)
        stage.save(at_most_every_s=60)
    stage.save()


def train_encoder(args: argparse.Namespace, audio: AudioSet) -> None:
    """Codes from audio."""
    import torch
    from codec_parts import Ear, Picture

    model = new_model(args.work).to(args.device)
    ear, picture, hearing = Ear(model.encoder).to(args.device), Picture().to(args.device), Hearing(model)
    begin(args, "ear", ear)
    stage = Stage(args, {"encoder": model.encoder}, rate=args.rate)
    while stage.done < 1:
        x, codes = audio.windows(args.batch, args.frames)
        x = noisy(torch.from_numpy(x).to(args.device))
        known = model.encoder.block[:4](x[:, None])
        with torch.no_grad():
            wanted = ear.feed(picture(x))
        early = (known - wanted)[..., 8:-8].abs().mean() / wanted.abs().mean()
        loss, right = hearing(model.encoder.block[4:](known), codes)
        # In the first third the last blocks stay as they are: the first ones learn to feed them.
        for p in model.encoder.block[4:].parameters():
            p.requires_grad_(stage.done > 0.33)
        stage.update(loss + args.early * early, [float(loss.detach()), float(early.detach()), *right], 0.4)
        stage.save(at_most_every_s=120)
    stage.save()


def train_rest(args: argparse.Namespace, audio: AudioSet) -> None:
    """The encoder's last blocks, on what its first ones make of the whole audio: that is computed once."""
    import torch

    model = new_model(args.work).to(args.device)
    path = args.work / "encoder.pt"
    encoder_state = torch.load(path, map_location=args.device, weights_only=False)
    model.encoder.load_state_dict(encoder_state["modules"]["encoder"])
    known, hearing = known_of(args, audio, model.encoder.block[:4]), Hearing(model)
    stage = Stage(args, {"rest": model.encoder.block[4:]}, rate=args.rate)
    wide = len(known) // len(audio.levels[0])
    while stage.done < 1:
        starts, codes = audio.places(args.batch, args.frames)
        x = np.stack([known[at * wide : (at + args.frames) * wide].T for at in starts]).astype(np.float32)
        loss, right = hearing(model.encoder.block[4:](torch.from_numpy(x).to(args.device)), codes)
        stage.update(loss, [float(loss.detach()), *right], constant_share=0.4)
        stage.save(at_most_every_s=120)
    stage.save()
    encoder_state["modules"]["encoder"] = model.encoder.state_dict()
    torch.save(encoder_state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def known_of(args: argparse.Namespace, audio: AudioSet, first: torch.nn.Module) -> np.ndarray:
    """[T / 128, D] float16 outputs of the encoder's first blocks for all the audio, in --work/known.npy."""
    import torch

    path = args.work / "known.npy"
    if path.exists():
        return np.load(path, mmap_mode="r")
    margin, long, parts, frames = 2, 96, [], len(audio.levels[0])
    with torch.no_grad():
        for start in range(0, frames, long):
            first_frame, last = max(0, start - margin), min(frames, start + long + margin)
            piece = audio.samples[first_frame * FRAME : last * FRAME].astype(np.float32) / 32767
            out = first(noisy(torch.from_numpy(piece)[None].to(args.device))[:, None])[0].T
            wide = len(out) // (last - first_frame)
            kept = out[(start - first_frame) * wide : (min(frames, start + long) - first_frame) * wide]
            parts.append(kept.half().cpu().numpy())
            if start // long % 50 == 0:
                print(f"known: {start} of {frames} frames", flush=True)
    np.save(path.with_suffix(".tmp.npy"), np.concatenate(parts))
    path.with_suffix(".tmp.npy").replace(path)
    return np.load(path, mmap_mode="r")


def begin(args: argparse.Namespace, name: str, module: torch.nn.Module) -> None:
    """Take the weights of the training before this one, if there was one."""
    import torch

    path = args.work / f"{name}.pt"
    if path.exists():
        module.load_state_dict(torch.load(path, map_location=args.device, weights_only=False)["modules"][name])
        print(f"begins with {path}", flush=True)


def train_sketch(args: argparse.Namespace, audio: AudioSet) -> None:
    """The decoder's first block, to pictures."""
    from codec_parts import Picture, Sketch

    model = new_model(args.work).to(args.device)
    sketch, picture = Sketch(model.decoder).to(args.device), Picture().to(args.device)
    stage = Stage(args, {"sketch": sketch}, rate=args.rate)
    while stage.done < 1:
        error = drawn(audio.windows(args.batch, args.frames), sketch, picture, model)
        stage.update(error, [float(error.detach())], constant_share=0.4)
        stage.save(at_most_every_s=60)
    stage.save()


def drawn(windows: tuple[np.ndarray, list[np.ndarray]], sketch: Any, picture: Any, model: Any) -> torch.Tensor:
    """The sketch's error on windows of audio."""
    import torch

    x, codes = windows
    device = next(model.parameters()).device
    with torch.no_grad():
        z = model.quantizer.from_codes([torch.from_numpy(c).to(device) for c in codes])
        wanted = picture(torch.from_numpy(x).to(device))
    sketch.first(z)
    return sketch.error(wanted)


def train_decoder(args: argparse.Namespace, audio: AudioSet) -> None:
    """Waveforms from codes."""
    import torch
    from codec_parts import HOP, Picture, Sketch, SpectralLoss

    model = new_model(args.work).to(args.device)
    sketch, picture = Sketch(model.decoder).to(args.device), Picture().to(args.device)
    begin(args, "sketch", sketch)
    stage = Stage(args, {"decoder": model.decoder, "head": sketch.head}, rate=args.rate)
    spectral = SpectralLoss().to(args.device)
    while stage.done < 1:
        x, codes = audio.windows(args.batch, args.frames)
        x = torch.from_numpy(x).to(args.device)
        with torch.no_grad():
            z = model.quantizer.from_codes([torch.from_numpy(c).to(args.device) for c in codes])
            wanted = picture(x)
        y = model.decoder(z)[:, 0]
        early = sketch.error(wanted)
        x, y = x[:, 2 * HOP : -2 * HOP], y[:, 2 * HOP : -2 * HOP]  # the ends lack their context
        (error, plain), wave = spectral(y, x), (y - x).abs().mean() / 0.06
        # Which sound is meant is learnt from many windows, and those that are only sketched cost little.
        more = drawn(audio.windows(2 * args.batch, 2 * args.frames), sketch, picture, model)
        loss = error + args.wave_weight * wave + args.early * (early + 2 * more)
        stage.update(loss, [float(v.detach()) for v in (error, plain, wave, early)], constant_share=0.4)
        stage.save(at_most_every_s=180)
    stage.save()


def join(args: argparse.Namespace) -> None:
    """Write the codec: config.json and model.safetensors with SNAC's own names, float16 on disk."""
    import torch
    from codec_parts import CONFIG
    from safetensors.torch import save_file

    model = new_model(args.work)
    for name in ("encoder", "decoder"):
        state = torch.load(args.work / f"{name}.pt", map_location="cpu", weights_only=False)
        getattr(model, name).load_state_dict(state["modules"][name])
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    state = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    save_file(state, args.out / "model.safetensors.tmp", metadata={"format": "pt"})
    (args.out / "model.safetensors.tmp").chmod(0o644)
    (args.out / "model.safetensors.tmp").replace(args.out / "model.safetensors")


STAGES = {
    "sketch": train_sketch,
    "decoder": train_decoder,
    "ear": train_ear,
    "encoder": train_encoder,
    "rest": train_rest,
}


def main() -> None:
    """Parse the command line and train one half, or join the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "join"])
    parser.add_argument("--work", type=Path, required=True, help="folder of codebooks.npz and of the training states")
    parser.add_argument("--audio", type=Path, help="folder written by make_corpus.py codec")
    parser.add_argument("--out", type=Path, help="folder that join writes")
    parser.add_argument("--minutes", type=float, default=30, help="length of the whole stage")
    parser.add_argument("--batch", type=int, default=4, help="windows in a step")
    parser.add_argument("--frames", type=int, default=12, help="frames (85 ms) in a window")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="learning rate")
    parser.add_argument("--early", type=float, default=1.0, help="weight of the pictures' error in the whole halves")
    parser.add_argument("--wave-weight", type=float, default=0.5, help="weight of the waveform error (decoder)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if args.stage == "join":
        if args.out is None:
            parser.error("join needs --out")
        join(args)
    elif args.audio is None:
        parser.error(f"{args.stage} needs --audio")
    else:
        STAGES[args.stage](args, AudioSet(args.audio, args.seed))


if __name__ == "__main__":
    main()
