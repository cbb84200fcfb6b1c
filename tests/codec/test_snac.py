"""SNAC: codes that do not depend on the batch, noise that can be had again, a stream that equals the whole."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from snac import SNAC
from snac.layers import NoiseBlock

from orpheus.codec import snac as codec_module
from orpheus.codec.snac import SAMPLES_PER_FRAME, SnacCodec
from orpheus.errors import UserError
from orpheus.format.tokens import CODEBOOK_SIZE, LAYER_RATE, Codes
from tests.support.codec_fixtures import PUBLISHED, TINY, speech_like, tiny_snac

TOLERANCE = 1e-5  # measured: 4e-7 (tiny) and 6e-7 (published size); other machines sum in other orders


@cache
def tiny_codec() -> SnacCodec:
    return SnacCodec.from_model(tiny_snac())


def random_codes(frames: int, seed: int = 0) -> Codes:
    rng = np.random.default_rng(seed)
    return Codes(*(rng.integers(0, CODEBOOK_SIZE, frames * rate) for rate in LAYER_RATE))


def stream(decoder, codes: Codes, chunks: list[int]) -> list[np.ndarray]:
    """Push `codes` in chunks of those sizes, then the rest; the pieces, the last from `finish`."""
    edges = [*np.minimum(np.cumsum([0, *chunks]), codes.frames), codes.frames]
    pieces = [decoder.push(codes.slice(a, b)) for a, b in pairwise(edges)]
    return [*pieces, decoder.finish()]


# ---- encode ----


def test_the_tiny_codec_is_a_fair_stand_in(codec):
    """Diverse codes, and noise that can be heard: otherwise the tests below would prove little."""
    codes = Codes.concatenate(codec.encode([speech_like(2.5, seed) for seed in range(4)]))
    assert [len(np.unique(layer)) > 0.3 * len(layer) for layer in codes] == [True] * 3
    one, other = (codec.decode(codes, seed) for seed in (1, 2))
    assert one.std() > 0.05
    assert (one - other).std() > 0.05


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 3 * SAMPLES_PER_FRAME), min_size=1, max_size=6), st.floats(0, 2))
def test_batched_encode_equals_one_by_one_and_snac_itself(lengths, batch_seconds):
    """Zeros added to a clip to fill up a batch of mixed lengths would change its last frames."""
    codec = tiny_codec()
    clips = [speech_like(1, seed)[:length] for seed, length in enumerate(lengths)]
    for clip, codes in zip(clips, codec.encode(clips, batch_seconds), strict=True):
        frames = -(-len(clip) // SAMPLES_PER_FRAME)
        assert [layer.shape for layer in codes] == [(frames * rate,) for rate in LAYER_RATE]
        assert all(layer.dtype == np.int64 for layer in codes)
        with torch.inference_mode():
            expected = tiny_snac().encode(torch.from_numpy(clip)[None, None])
        for layer, alone, want in zip(codes, codec.encode([clip])[0], expected, strict=True):
            assert np.array_equal(layer, alone)
            assert np.array_equal(layer, want[0].numpy())


def test_padding_to_the_longest_would_change_codes(codec):
    """The reason for batches of equal length: the test above is not empty."""
    clip = speech_like(4 * SAMPLES_PER_FRAME / 24000)
    padded = np.pad(clip, (0, 4 * SAMPLES_PER_FRAME))
    fine, fine_of_padded = codec.encode([clip])[0].fine, codec.encode([padded])[0].fine
    assert not np.array_equal(fine, fine_of_padded[: len(fine)])


def test_batches_share_a_length_and_respect_the_bound():
    lengths = [4, 2, 4, 4, 2, 9]
    batches = list(codec_module._batches(lengths, 8))
    assert sorted(index for batch in batches for index in batch) == list(range(6))
    assert all(len({lengths[i] for i in batch}) == 1 for batch in batches)
    assert [len(batch) for batch in batches] == [2, 1, 2, 1]
    assert [len(batch) for batch in codec_module._batches(lengths, 0)] == [1] * 6


@pytest.mark.parametrize("wav", [np.zeros(0, np.float32), np.zeros((2, 9), np.float32), np.zeros(9, np.int16),
                                 np.full(9, np.nan, np.float32)])  # fmt: skip
def test_encode_refuses_and_names_the_clip(codec, wav):
    with pytest.raises(UserError, match="clip 1"):
        codec.encode([speech_like(0.1), wav])
    assert codec.encode([]) == []


# ---- decode ----


def test_decode_is_snacs_own_with_the_noise_made_reproducible(monkeypatch):
    """SNAC's modules, given the noise of (seed, block), and the streaming layers agree."""
    codes = random_codes(20)
    blocks = [module for module in tiny_snac().modules() if isinstance(module, NoiseBlock)]
    assert len(blocks) == 4

    def forward(self, x):
        generator = np.random.Generator(np.random.Philox([7, blocks.index(self) + 1]))
        return x + torch.from_numpy(generator.standard_normal(x.shape[-1], dtype=np.float32)) * self.linear(x)

    monkeypatch.setattr(NoiseBlock, "forward", forward)
    with torch.inference_mode():
        expected = tiny_snac().decode([torch.from_numpy(layer)[None] for layer in codes])[0, 0].numpy()
    assert np.abs(tiny_codec().decode(codes, seed=7) - expected).max() < TOLERANCE


@pytest.mark.parametrize("frames", [0, 1, 2, 3, 40])
def test_decode_gives_every_sample_in_range(codec, frames):
    samples = codec.decode(random_codes(frames))
    assert samples.dtype == np.float32
    assert samples.shape == (frames * SAMPLES_PER_FRAME,)
    assert np.abs(samples).max(initial=0) <= 1


def test_noise_is_reproducible_and_leaves_the_global_generators_alone(codec):
    """Defect 5: SNAC draws its noise from torch's global generator, so no output can be had again."""
    codes = random_codes(4)
    torch.manual_seed(0)
    first = codec.decode(codes, seed=3)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    assert np.array_equal(codec.decode(codes, seed=3), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not np.array_equal(codec.decode(codes, seed=4), first)


def test_noise_follows_the_position_not_the_codes(codec):
    """The first frames sound the same whatever comes later."""
    codes = random_codes(12)
    final = 8 * SAMPLES_PER_FRAME - codec.reach[0]
    assert np.abs(codec.decode(codes)[:final] - codec.decode(codes.slice(0, 8))[:final]).max() < TOLERANCE


@pytest.mark.parametrize(
    ("codes", "says"),
    [
        (Codes(np.array([0]), np.array([0, CODEBOOK_SIZE]), np.zeros(4, int)), "layer 2"),
        (Codes(np.array([-1]), np.zeros(2, int), np.zeros(4, int)), "layer 1"),
        (Codes(np.zeros(1, int), np.zeros(3, int), np.zeros(4, int)), "shapes"),
        (Codes(np.zeros(0, int), np.zeros(0, int), np.zeros(1, int)), "shapes"),
        (Codes(np.zeros(1), np.zeros(2), np.zeros(4)), "integers"),
    ],
)
def test_wrong_codes_are_refused(codec, codes, says):
    for use in (codec.decode, codec.streaming().push):
        with pytest.raises(UserError, match=says):
            use(codes)


def test_codes_0_and_4095_are_codes_like_any_other(codec):
    for code in (0, CODEBOOK_SIZE - 1):
        assert len(codec.decode(Codes(*(np.full(3 * rate, code) for rate in LAYER_RATE)))) == 3 * SAMPLES_PER_FRAME


# ---- streaming ----


@settings(max_examples=25, deadline=None)
@given(frames=st.integers(0, 20), chunks=st.lists(st.integers(0, 7), max_size=12), seed=st.integers(0, 2**70))
def test_any_chunking_equals_the_whole(frames, chunks, seed):
    """Defect 4: windows that give only their middle lose the first frame and the last, and short utterances."""
    codes = random_codes(frames, seed % 1000)
    whole = tiny_codec().decode(codes, seed)
    joined = np.concatenate(stream(tiny_codec().streaming(seed), codes, chunks))
    assert joined.shape == whole.shape == (frames * SAMPLES_PER_FRAME,)
    assert np.abs(joined - whole).max(initial=0) < TOLERANCE


def test_samples_come_as_soon_as_they_are_final(codec):
    pieces = stream(codec.streaming(), random_codes(6), [1] * 6)
    given_out = np.cumsum([len(piece) for piece in pieces])
    expected = [max(0, n * SAMPLES_PER_FRAME - codec.reach[0]) for n in range(1, 7)]
    assert given_out[:6].tolist() == expected == [0, 0, 1387, 3435, 5483, 7531]
    assert given_out[-1] == 6 * SAMPLES_PER_FRAME


@pytest.mark.parametrize("config", [TINY, {**PUBLISHED, "encoder_dim": 4, "latent_dim": 768}], ids=["tiny", "full"])
def test_reach_is_what_a_changed_frame_changes(config):
    """The reach derived from the convolutions, against SNAC's own decoder."""
    frames, at = 7, 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = SNAC(**{**config, "noise": False}).double().eval()  # float64, so that small changes show
    before, after = SnacCodec.from_model(model).reach
    assert (before, after) == (4757, 4757)
    codes = random_codes(frames)
    changed = Codes(*(np.copy(layer) for layer in codes))
    for layer, rate in zip(changed, LAYER_RATE, strict=True):
        layer[at * rate : (at + 1) * rate] ^= 1
    with torch.inference_mode():
        one, other = (model.decode([torch.from_numpy(layer)[None] for layer in c])[0, 0] for c in (codes, changed))
    where = torch.nonzero(one != other)[:, 0]
    # Nothing changes outside; inside, the last few differences are products of so many weights that they round to 0.
    assert 0 <= where.min() - (at * SAMPLES_PER_FRAME - before) < 16
    assert 0 <= (at + 1) * SAMPLES_PER_FRAME + after - 1 - where.max() < 16


def test_other_strides_and_kernels_give_other_reaches():
    """Nothing in the derivation is made for one set of rates."""
    model = SNAC(**{**TINY, "encoder_rates": [4, 4, 4, 8], "decoder_rates": [4, 8, 4, 4], "noise": False}).eval()
    codec = SnacCodec.from_model(model)
    codes = random_codes(9)
    assert codec.reach != (4757, 4757)
    with torch.inference_mode():
        expected = model.decode([torch.from_numpy(layer)[None] for layer in codes])[0, 0].numpy()
    pieces = stream(codec.streaming(), codes, [1] * 9)
    assert np.abs(np.concatenate(pieces) - expected).max() < TOLERANCE
    assert sum(len(piece) for piece in pieces[:-1]) == 9 * SAMPLES_PER_FRAME - codec.reach[0]


def test_streams_side_by_side_do_not_disturb_each_other(codec):
    codes = [random_codes(6, seed=1), random_codes(6, seed=2)]
    streams = [codec.streaming(seed=10), codec.streaming(seed=20)]
    pieces: list[list[np.ndarray]] = [[], []]
    for i in range(6):
        for k in (0, 1):
            pieces[k].append(streams[k].push(codes[k].slice(i, i + 1)))
    for k in (0, 1):
        joined = np.concatenate([*pieces[k], streams[k].finish()])
        assert np.abs(joined - codec.decode(codes[k], seed=10 * (k + 1))).max() < TOLERANCE


def test_a_finished_stream_stays_finished(codec):
    decoder = codec.streaming()
    assert decoder.push(random_codes(0)).shape == (0,)
    assert decoder.finish().shape == (0,)
    for use in (decoder.finish, lambda: decoder.push(random_codes(1))):
        with pytest.raises(UserError, match="finished"):
            use()
    with pytest.raises(UserError, match="seed"):
        codec.streaming(seed=-1)


# ---- loading ----


def save(folder: Path, weights: str = "model.safetensors", **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**TINY, **changes}))
    state = tiny_snac().state_dict()
    if weights.endswith(".safetensors"):
        save_file(state, folder / weights)
    else:
        torch.save(state, folder / weights)
    return folder


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_load_from_a_folder(tmp_path, codec, weights):
    state = torch.random.get_rng_state()
    loaded = SnacCodec.load(save(tmp_path, weights))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert loaded.identity == codec.identity
    assert loaded.name == str(tmp_path)
    assert (loaded.sample_rate_hz, loaded.hop_length, loaded.samples_per_frame) == (24000, 512, 2048)
    codes = random_codes(3)
    assert np.array_equal(loaded.decode(codes), codec.decode(codes))


def test_safetensors_are_preferred(tmp_path, codec):
    save(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    assert SnacCodec.load(tmp_path).identity == codec.identity


def test_identity_tells_codecs_apart(codec):
    assert codec.identity == SnacCodec.from_model(tiny_snac()).identity
    assert codec.identity != SnacCodec.from_model(tiny_snac(seed=1)).identity


class Malicious:
    def __reduce__(self):
        return print, ("code ran",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    save(tmp_path, "pytorch_model.bin")
    torch.save({"weight": Malicious()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="could run code"):
        SnacCodec.load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(UserError, match="could run code"):
        SnacCodec.load(tmp_path)
    for content in (b"", bytes(100), b"PK damaged"):
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(UserError, match=r"pytorch_model\.bin"):
            SnacCodec.load(tmp_path)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sampling_rate": 32000}, "32000 Hz.*24000 Hz"),
        ({"vq_strides": [8, 4, 2, 1]}, r"\(8, 4, 2, 1\).*\(4, 2, 1\)"),
        ({"encoder_rates": [2, 4, 4, 8]}, "hop 256.*hop 512"),
        ({"codebook_size": 1024}, "1024 codes.*4096 codes"),
        ({"attn_window_size": 32}, "attention"),
        ({"decoder_dim": 64}, "does not fit"),
        ({"no_such_option": 1}, "not the config"),
    ],
)
def test_another_codec_is_refused_with_what_came_and_what_was_expected(tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        SnacCodec.load(save(tmp_path, **changes))


@pytest.mark.parametrize(
    ("file", "content"),
    [("config.json", b"{"), ("config.json", b"[]"), ("model.safetensors", bytes(100)), ("model.safetensors", b"")],
)
def test_damaged_files_are_named(tmp_path, file, content):
    save(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=file):
        SnacCodec.load(tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        SnacCodec.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    with pytest.raises(UserError, match=r"model\.safetensors or pytorch_model\.bin"):
        SnacCodec.load(tmp_path)
    with pytest.raises(UserError, match="no folder"):
        SnacCodec.load(tmp_path / "nowhere")


def test_load_from_the_hub_takes_what_the_repository_has(tmp_path, monkeypatch, codec):
    """The published repository has config.json and pytorch_model.bin, no safetensors."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    folder = save(tmp_path, "pytorch_model.bin")

    def download(repo, file):
        if not (folder / file).exists():
            raise LocalEntryNotFoundError(f"no {file}")
        return str(folder / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    loaded = SnacCodec.load("someone/snac")
    assert (loaded.name, loaded.identity) == ("someone/snac", codec.identity)


def hub_errors():
    from httpx import Request, Response
    from huggingface_hub import errors

    response = Response(404, request=Request("GET", "https://huggingface.co/someone/snac"))
    return [
        errors.LocalEntryNotFoundError("Connection error, and we cannot find the requested files in the cache"),
        errors.OfflineModeIsEnabled("offline mode is enabled"),
        errors.RepositoryNotFoundError("404 Client Error", response=response),
        errors.RemoteEntryNotFoundError("404 Client Error", response=response),
        ConnectionError("[Errno -2] Name or service not known"),
    ]


@pytest.mark.parametrize("number", range(5))
def test_a_hub_that_does_not_give_it_is_one_clear_error(monkeypatch, number):
    """Defect 16: no silent fallback; the error names the id and what to do."""
    error = hub_errors()[number]
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(UserError, match=r"someone/snac.*local folder.*hf download someone/snac.*tiny"):
        SnacCodec.load("someone/snac")


def test_importing_the_module_loads_nothing_heavy():
    program = "import sys, orpheus.codec.snac; print([m for m in ('torch', 'snac', 'soundfile') if m in sys.modules])"
    root = Path(codec_module.__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_missing_snac_names_the_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "snac", SimpleNamespace(__spec__=None))
    with pytest.raises(UserError, match="pip install snac"):
        SnacCodec.load(save(tmp_path))
