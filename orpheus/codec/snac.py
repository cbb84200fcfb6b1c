"""SNAC, the neural audio codec of Orpheus: audio to codes, codes to audio, whole or as a stream.

24,000 samples a second become frames of 2048 samples = 4 latents of 512, and each frame becomes 1 + 2 + 4 codes
(hubertsiuzdak/snac, `snac/snac.py`; config of hubertsiuzdak/snac_24khz). The only file that imports `snac`.

Everything is computed in float32: with less, codes flip, and a stream no longer equals the whole.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.errors import MissingPackage, UserError
from orpheus.format.tokens import CODEBOOK_SIZE, LAYER_RATE, ORPHEUS, Codes
from orpheus.model.checks import check_numbers
from orpheus.model.hub import fetch, local_folder
from orpheus.model.provenance import read_json
from orpheus.threads import NARROW, threads

if TYPE_CHECKING:
    import torch

    from orpheus.codec.convolutions import State

HOP_LENGTH = 512  # samples per latent: the product of SNAC's encoder rates 2, 4, 8, 8
LATENTS_PER_FRAME = LAYER_RATE[-1]  # the finest layer has a code for each latent
STRIDES = tuple(LATENTS_PER_FRAME // rate for rate in LAYER_RATE)  # latents per code, SNAC's `vq_strides`
SAMPLES_PER_FRAME = HOP_LENGTH * LATENTS_PER_FRAME

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # in order of preference; the published codec has the second
DECODE_FRAMES = 16  # frames that `decode` computes at a time: bounds its memory, and is fastest on a CPU (caches)
FEW_FRAMES = 4  # that a narrow codec decodes more quickly in one thread
ROWS_ON_CPU = 4  # streams that a CPU computes as one batch: the weights are read once for all; more leave the caches


class SnacCodec:
    """A SNAC model for 24 kHz: `load` it, then `encode`, `decode`, `streaming`. Safe to share between threads."""

    def __init__(self, model: Any, name: str) -> None:
        _check_format(model, name)
        self._model = model.eval()
        from snac import layers

        from orpheus.codec.convolutions import folded_encoder, streaming_decoder

        self._tables, self._decoder = streaming_decoder(model, layers)
        self._encoder = folded_encoder(model, layers)
        self.name = name
        self.device: torch.device = self._tables[0].device
        self._narrow = self.device.type == "cpu" and self._tables[0].shape[1] <= NARROW
        if self.device.type == "cuda":
            _compute_exactly()

    @classmethod
    def load(cls, id_or_path: str | Path, device: str = "cpu") -> SnacCodec:
        """Load a codec from a folder or from the Hugging Face hub.

        Both hold config.json and model.safetensors or pytorch_model.bin; of the latter only tensors are
        accepted, never code. Raises UserError when it can't be had (naming the id, the cause and the remedies),
        is damaged, or is another codec than SNAC for 24 kHz. Nothing takes its place silently.
        """
        try:
            from snac import SNAC
        except ImportError as error:
            raise MissingPackage("snac", "the audio codec") from error
        import torch

        config_file, weight_file = _find(str(id_or_path))
        config = read_json(config_file, "use the published codec")
        weights = _read_weights(weight_file)
        try:
            with torch.device("meta"):  # nothing is allocated for a config that asks for too much
                sketch = SNAC(**config)
            _check_format(sketch, str(id_or_path))
            if {name: tensor.shape for name, tensor in sketch.state_dict().items()} != {
                name: tensor.shape for name, tensor in weights.items()
            }:
                raise UserError(f"{weight_file} does not fit its config.json: use the files of one and the same codec")
            # SNAC draws initial weights; the caller's random state must not notice.
            with torch.random.fork_rng(devices=[]):
                model = SNAC(**config)
        except UserError:
            raise
        except Exception as error:  # SNAC checks nothing itself: TypeError, ValueError, IndexError, RuntimeError, ...
            raise UserError(f"{config_file} is not the config of a SNAC codec: {error}") from error
        check_numbers(weights, f"the codec's {weight_file}")
        model.load_state_dict(weights)
        return cls(model.to(device), str(id_or_path))

    @classmethod
    def from_model(cls, model: Any, name: str = "snac") -> SnacCodec:
        """Wrap a `snac.SNAC` on its device. Its weights must not change afterwards: the decoder's are copied here."""
        return cls(model, name)

    @property
    def sample_rate_hz(self) -> int:
        """24000."""
        return SAMPLE_RATE_HZ

    @property
    def hop_length(self) -> int:
        """Samples per latent: 512."""
        return HOP_LENGTH

    @property
    def samples_per_frame(self) -> int:
        """Samples per frame: 2048, 85.3 ms."""
        return SAMPLES_PER_FRAME

    @property
    def reach(self) -> tuple[int, int]:
        """How many samples before and after its own span a frame's codes change.

        Derived from the decoder's kernels, strides and dilations: (4757, 4757) for the published codec. The
        first number is the delay of a stream: after n frames, n * 2048 - 4757 samples are final.
        """
        start, stop = self._decoder.reach(0, LATENTS_PER_FRAME)
        return -start, stop - SAMPLES_PER_FRAME

    @cached_property
    def identity(self) -> str:
        """A short name of exactly these weights and this architecture, for cache keys: 'snac-' and 16 hex digits."""
        digest = hashlib.blake2b(repr((self._model.encoder_rates, self._model.decoder_rates)).encode(), digest_size=8)
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy())
        return f"snac-{digest.hexdigest()}"

    def encode(self, wavs: Sequence[np.ndarray], batch_seconds: float | None = None) -> list[Codes]:
        """Encode clips, each float32 [N] at 24 kHz with N > 0, into codes of ceil(N / 2048) frames, int64.

        As in SNAC itself, a clip is filled up with zeros to whole frames. `batch_seconds` is the audio computed
        at a time; 0 takes the clips one by one. The default is 0 on a CPU, where it is fastest (about 2 times,
        published size, clips of 2 s), and 60 elsewhere. Only clips with the same number of frames share a batch:
        zeros of another length would change the last frames. So the CPU gives the very same codes; where a device
        sums in another order, two codes of almost the same score (cosines within 1e-5: a few in a thousand are so
        close) may change places.

        Raises UserError that names the index of an empty, non-finite or wrongly shaped clip.
        """
        import torch

        if batch_seconds is None:
            batch_seconds = 0.0 if self.device.type == "cpu" else 60.0
        clips = [_whole_frames(wav, index) for index, wav in enumerate(wavs)]
        codes: dict[int, Codes] = {}
        for batch in _batches([len(clip) for clip in clips], int(batch_seconds * SAMPLE_RATE_HZ)):
            audio = torch.from_numpy(np.stack([clips[index] for index in batch])[:, None])
            with torch.inference_mode():
                found = self._model.quantizer(self._encoder(audio.to(self.device)))[1]
                layers = [layer.cpu().numpy() for layer in found]
            codes.update((index, Codes(*(layer[row] for layer in layers))) for row, index in enumerate(batch))
        return [codes[index] for index in range(len(clips))]

    def decode(self, codes: Codes, seed: int = 0) -> np.ndarray:
        """Decode the codes of T frames (integers [T], [2T], [4T]) into float32 [T * 2048] in [-1, 1].

        SNAC's decoder adds noise; here it is a function of (seed, position), so the same codes and seed give
        the same audio. Raises UserError for codes out of range, or of lengths that don't belong together.
        """
        _check_codes(codes)
        stream = self.streaming(seed)
        parts = [stream.push(codes.slice(i, i + DECODE_FRAMES)) for i in range(0, codes.frames, DECODE_FRAMES)]
        return np.concatenate([*parts, stream.finish()])

    def streaming(self, seed: int = 0) -> StreamingDecoder:
        """A decoder for one sequence, fed as its codes arrive. `seed`: any integer >= 0."""
        return StreamingDecoder(self, seed)

    def push_many(self, streams: Sequence[StreamingDecoder], codes: Sequence[Codes]) -> list[np.ndarray]:
        """Push T_i >= 0 whole frames into each of B different streams of this codec; -> each one's float32 [n_i].

        The same as `stream.push(codes)` for each of them (within 1e-6), in fewer and larger steps: streams that
        get the same number of frames and stand at the same place of their course are computed as one batch. From
        the third frame on all stand at the same place, so the streams may have begun at different times.

        Raises UserError as `push`, before any stream has moved on, and for a stream that is given twice.
        """
        import torch

        if len({id(stream) for stream in streams}) != len(streams) or len(streams) != len(codes):
            raise UserError(
                f"push_many got {len(streams)} streams and {len(codes)} codes: expected as many, and no stream twice"
            )
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, (stream, layers) in enumerate(zip(streams, codes, strict=True)):
            assert stream._codec is self, "the stream of another codec"
            stream._expect_open()
            _check_codes(layers)
            if len(layers[0]):
                groups.setdefault((len(layers[0]), *stream._state.place), []).append(index)
        samples = [np.zeros(0, np.float32) for _ in streams]
        at_once = ROWS_ON_CPU if self.device.type == "cpu" else max(1, len(streams))
        for (frames, *_), group in groups.items():
            for rows in (group[i : i + at_once] for i in range(0, len(group), at_once)):
                together = [streams[row] for row in rows]
                alone = self._narrow and len(rows) * frames <= FEW_FRAMES
                with torch.inference_mode(), threads(1 if alone else None):
                    latents = self._latents([codes[row] for row in rows])
                    out = self._push(latents, [stream._state for stream in together])[:, 0].float().cpu().numpy()
                for row, stream, audio in zip(rows, together, out, strict=True):
                    stream.frames += frames
                    samples[row] = audio
        return samples

    def _latents(self, codes: Sequence[Codes]) -> torch.Tensor:
        """What the decoder reads, [B, D, 4T], for B sequences of T frames."""
        import torch

        latents: Any = 0
        for layer, table, stride in zip(zip(*codes, strict=True), self._tables, STRIDES, strict=True):
            indices = torch.as_tensor(np.stack(layer).astype(np.int64), device=table.device)
            latents = latents + table[indices].repeat_interleave(stride, 1)
        return latents.transpose(1, 2)

    def _push(self, latents: torch.Tensor, states: list[State]) -> torch.Tensor:
        if len(states) == 1:
            return self._decoder.push(latents, states[0], last=False)
        from orpheus.codec.convolutions import stack, unstack

        batch = stack(states)
        out = self._decoder.push(latents, batch, last=False)
        unstack(batch, states)
        return out


class StreamingDecoder:
    """Decodes one sequence as it arrives: `push` frames, then `finish`.

    The pieces, joined, are the samples of `SnacCodec.decode` with the same seed, however the frames were cut:
    within 1e-6, the rounding of other summation orders. Each sample is given out as soon as no later frame can
    change it, so the stream lags by `codec.reach[0]` samples: 4757 = 198 ms for the published codec, whose first
    audio (1387 samples, 58 ms) comes with the third frame. `finish` gives the rest, also of 1 or 2 frames.

    Nothing is computed twice: each convolution keeps its last inputs (0.5 MB for the published codec).
    Streams share the weights and nothing else, so any number of them may run side by side.
    """

    def __init__(self, codec: SnacCodec, seed: int) -> None:
        if seed < 0:
            raise UserError(f"the seed is {seed}, expected an integer >= 0")
        self._codec = codec
        self._state = codec._decoder.start(seed)
        self._finished = False
        self.frames = 0  # taken so far

    def push(self, codes: Codes) -> np.ndarray:
        """Take T >= 0 whole frames (integers [T], [2T], [4T]); returns the samples now final, float32 [n], n >= 0.

        Raises UserError as `SnacCodec.decode`, and after `finish`.
        """
        return self._codec.push_many([self], [codes])[0]

    def finish(self) -> np.ndarray:
        """End the sequence; returns the remaining samples, float32 [m]. Nothing can be pushed afterwards."""
        self._expect_open()
        self._finished = True
        if not self.frames:
            return np.zeros(0, np.float32)
        import torch

        table = self._codec._tables[0]
        with torch.inference_mode():
            rest = self._codec._decoder.push(table.new_zeros(1, table.shape[1], 0), self._state, last=True)
            return rest[0, 0].float().cpu().numpy()

    def _expect_open(self) -> None:
        if self._finished:
            raise UserError("this stream is finished: start another one with codec.streaming()")


def _compute_exactly() -> None:
    """Full float32 sums in a fixed order, for the whole process: torch has no narrower switch that threads could share.

    TensorFloat-32 has 10 bits where these sums need 24. A language model has no cuDNN convolutions to slow down.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def _check_format(model: Any, name: str) -> None:
    got = (model.sampling_rate, tuple(model.vq_strides), int(model.hop_length), model.codebook_size)
    expected = (SAMPLE_RATE_HZ, STRIDES, HOP_LENGTH, CODEBOOK_SIZE)
    if got != expected or model.attn_window_size is not None:
        text = "{} Hz, strides {}, hop {}, {} codes per codebook"
        attention = "" if model.attn_window_size is None else ", with attention"
        raise UserError(
            f"the codec {name} has {text.format(*got)}{attention}; Orpheus needs SNAC for 24 kHz: "
            f"{text.format(*expected)}, such as hubertsiuzdak/snac_24khz"
        )


def _find(id_or_path: str) -> tuple[Path, Path]:
    """The config and the weights, in a local folder or in the hub's cache."""
    return find_local(id_or_path) or fetch("codec", id_or_path, lambda: _download(id_or_path),
                                           "use the embedded codec: --preset tiny")  # fmt: skip


def find_local(id_or_path: str | Path) -> tuple[Path, Path] | None:
    """The config and the weights in a local folder; None: a hub id. UserError: the folder is none, or holds no codec.

    Nothing is loaded, so that a wrong name is told at once.
    """
    folder = local_folder(id_or_path, "codec")
    if folder is None:
        return None
    weights = next((folder / file for file in WEIGHT_FILES if (folder / file).is_file()), None)
    if weights is None:
        raise UserError(f"codec: the folder {folder} has no weights, expected {' or '.join(WEIGHT_FILES)}")
    return folder / "config.json", weights


def _download(hub_id: str) -> tuple[Path, Path]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    config = hf_hub_download(hub_id, "config.json")
    try:
        weights = hf_hub_download(hub_id, WEIGHT_FILES[0])
    except EntryNotFoundError:  # also raised offline, for a file that is not in the cache
        weights = hf_hub_download(hub_id, WEIGHT_FILES[1])
    return Path(config), Path(weights)


def _read_weights(file: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        weights = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(weights, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
            raise ValueError("it holds other things than named tensors")
        return weights
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file} is damaged or holds more than tensors; it is refused, for it could run code: "
            "use a model.safetensors, or the published codec"
        ) from error
    except Exception as error:  # a damaged file fails in many ways: EOFError, RuntimeError, SafetensorError
        raise UserError(f"{file} can't be read, it is damaged or incomplete ({error})") from error


def _check_codes(codes: Codes) -> None:
    ORPHEUS.flatten(codes)  # it checks types, lengths and ranges, and its errors say what is wrong


def _whole_frames(wav: np.ndarray, index: int) -> np.ndarray:
    """The clip, float32, with zeros up to a whole number of frames."""
    wav = np.asarray(wav)
    if wav.ndim != 1 or not len(wav) or wav.dtype.kind != "f":
        raise UserError(f"clip {index} is {wav.dtype} {list(wav.shape)}, expected float32 [N] with N > 0, mono, 24 kHz")
    if not np.isfinite(wav).all():
        raise UserError(f"clip {index} holds NaN or infinite samples")
    return np.pad(wav.astype(np.float32), (0, -len(wav) % SAMPLES_PER_FRAME))


def _batches(lengths: Sequence[int], max_samples: int) -> Iterator[list[int]]:
    """Indices in groups of equal length, of at most `max_samples` in all, but at least one clip."""
    groups: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        groups.setdefault(length, []).append(index)
    for length, group in groups.items():
        size = max(1, max_samples // length)
        yield from (group[i : i + size] for i in range(0, len(group), size))
