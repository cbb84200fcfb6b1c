"""Train the tiny SNAC codec (data/tiny_codec) on the audio that make_corpus.py writes. CPU or GPU, resumable.

    python data/make/make_corpus.py codec --hours 2 --out work/codec
    python data/make/train_tiny_codec.py encoder --audio work/codec --work work --minutes 30
    python data/make/train_tiny_codec.py decoder --audio work/codec --work work --minutes 60

`encoder` trains encoder and quantiser with a throw-away head that predicts log mels from the quantised latents (no
decoder: several times faster than joint training, and it does not stall), then fits the codebooks by k-means to all
latents. From then on the codes are fixed, so the language model can be trained beside `decoder`, which learns
waveforms from the fixed codes. Each stage saves its state in --work every few minutes and continues from it (the
minutes are those of the whole stage). `decoder` writes data/tiny_codec after each save.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    import torch
    from audio_set import AudioSet

DATA = Path(__file__).resolve().parents[1]
SIZES = [1024, 1024, 1024]  # codes in use of the 4096 that the layout has


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


def save_codec(model: torch.nn.Module, folder: Path) -> None:
    """config.json and model.safetensors with SNAC's own names, float16 on disk."""
    from codec_parts import CONFIG
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    state = {name: value.detach().half().contiguous().cpu() for name, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors.tmp", metadata={"format": "pt"})
    (folder / "model.safetensors.tmp").chmod(0o644)
    (folder / "model.safetensors.tmp").replace(folder / "model.safetensors")


def load_codec(path: Path) -> torch.nn.Module:
    """The codec as the encoder stage left it (fixed_codes.pt: its codes no longer change), or a finished folder."""
    import torch
    from codec_parts import CONFIG
    from safetensors.torch import load_file
    from snac import SNAC

    if path.is_dir():
        model = SNAC(**json.loads((path / "config.json").read_text("utf-8")))
        model.load_state_dict(load_file(path / "model.safetensors"))
        return model
    model = SNAC(**CONFIG)
    model.load_state_dict(torch.load(path, weights_only=True), strict=False)  # without a decoder yet
    return model


def train_encoder(args: argparse.Namespace, audio: AudioSet) -> None:
    """Encoder and quantiser from log mels; ends by fixing the codebooks in work/fixed_codes.pt."""
    import torch
    from codec_parts import CONFIG, FRAME, MelHead, Quantiser, fit_codebooks
    from fast_ops import speed_up
    from snac import SNAC

    model = speed_up(SNAC(**CONFIG)).to(args.device)
    if args.start:
        earlier = load_codec(args.start)
        model.encoder.load_state_dict(earlier.encoder.state_dict())
        model.quantizer.load_state_dict(earlier.quantizer.state_dict())
    head = MelHead(model.latent_dim).to(args.device)
    parts = {"encoder": model.encoder, "quantizer": model.quantizer, "head": head}
    stage = Stage(args, parts, rate=2e-3)
    quantiser = Quantiser(model.quantizer, SIZES)
    quantiser.on = stage.extra.get("on", False)
    refits = [0.06, 0.12, 0.2, 0.3, 0.45, 0.6, 0.75, 0.85]  # the first one switches quantisation on
    due = stage.extra.get("refits", 0)
    while stage.done < 1:
        if due < len(refits) and stage.done > refits[due]:
            due += 1
            print("refit: used shares of the codebooks", quantiser.refit(), flush=True)
            stage.extra = {"on": True, "refits": due}
        x = torch.from_numpy(audio.windows(args.batch, args.frames * FRAME)).to(args.device)
        # The embedded corpora are rounded to 9 or 10 bits: their noise must not change the codes.
        bits = torch.randint(9, 17, (len(x), 1), device=args.device)
        rounding = (torch.rand_like(x) - 0.5) * 2.0 ** (1 - bits)
        z, loss = quantiser(model.encoder((x + rounding)[:, None]))
        error, envelope = head.error(z, x)
        figures = [float(v.detach()) for v in (error, envelope, loss)]
        stage.update(3 * error + 3 * envelope + 0.3 * loss, figures, constant_share=0.5)
        stage.save(at_most_every_s=120)
    stage.save()
    model.half().float()  # what float16 on disk will hold: the codes must not change when the codec is saved
    z = audio.latents(model.encoder.eval(), seconds=3600)
    print("relative error left after each level", fit_codebooks(model.quantizer, z, SIZES), flush=True)
    state = {name: value for name, value in model.half().state_dict().items() if not name.startswith("decoder.")}
    torch.save(state, args.work / "fixed_codes.pt")


def train_decoder(args: argparse.Namespace, audio: AudioSet) -> None:
    """Waveforms from fixed codes."""
    import torch
    from codec_parts import HOP, SpectralLoss
    from fast_ops import speed_up

    model = load_codec(args.work / "fixed_codes.pt")
    codes = audio.codes(model, args.work / "decoder_codes.npz")
    model = speed_up(model).to(args.device)
    stage = Stage(args, {"decoder": model.decoder}, rate=1.5e-3)
    spectral = SpectralLoss().to(args.device)
    while stage.done < 1:
        x, window = audio.windows_with_codes(codes, args.batch, args.frames)
        x = torch.from_numpy(x).to(args.device)
        with torch.no_grad():
            z = model.quantizer.from_codes([torch.from_numpy(c).to(args.device) for c in window])
        y = model.decoder(z)[:, 0]
        x, y = x[:, 2 * HOP : -2 * HOP], y[:, 2 * HOP : -2 * HOP]  # the ends lack their context
        error, wave = spectral(y, x), (y - x).abs().mean()
        figures = [float(v.detach()) for v in (error, wave)]
        stage.update(error + args.wave_weight * wave, figures, constant_share=0.4)
        if stage.save(at_most_every_s=180):
            save_codec(model, args.out)
    stage.save()
    save_codec(model, args.out)


def main() -> None:
    """Parse the command line and train one stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["encoder", "decoder"])
    parser.add_argument("--audio", type=Path, required=True, help="folder written by make_corpus.py codec")
    parser.add_argument("--work", type=Path, required=True, help="folder for the training state")
    parser.add_argument("--start", type=Path, help="a finished codec whose encoder is trained further (encoder)")
    parser.add_argument("--out", type=Path, default=DATA / "tiny_codec")
    parser.add_argument("--minutes", type=float, default=30, help="length of the whole stage")
    parser.add_argument("--batch", type=int, default=8, help="windows in a step")
    parser.add_argument("--frames", type=int, default=8, help="frames (85 ms) in a window")
    parser.add_argument("--wave-weight", type=float, default=0.0, help="weight of the waveform error (decoder)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    import torch
    from audio_set import AudioSet

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    audio = AudioSet(args.audio, args.seed)
    (train_encoder if args.stage == "encoder" else train_decoder)(args, audio)


if __name__ == "__main__":
    main()
