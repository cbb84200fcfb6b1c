"""The token format of Orpheus: special ids, the seven-slot frame, and the exact inverse pair flatten / unflatten.

Orpheus writes speech as text tokens. SNAC (24 kHz) describes 2048 samples, one *frame*, by seven codes
from three codebook layers (1 + 2 + 4). Each code becomes one token, in this order:

    slot     0        1         2         3           4           5           6
    code  L1[i]    L2[2i]    L3[4i]   L3[4i+1]    L2[2i+1]    L3[4i+2]    L3[4i+3]

    id = audio_start + 4096 * slot + code          so the id alone tells its slot

Every integer of the format lives in this file and nowhere else. Sources: `canopyai/Orpheus-TTS`
(`orpheus_tts_pypi/orpheus_tts/decoder.py` and `engine_class.py`), Unsloth's Orpheus notebook (`redistribute_codes`).

No torch here: NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from orpheus.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

CODEBOOK_SIZE = 4096
SLOT_LAYER = (0, 1, 2, 2, 1, 2, 2)  # which codebook layer each slot of a frame carries
FRAME_SLOTS = len(SLOT_LAYER)
LAYERS = max(SLOT_LAYER) + 1
LAYER_SLOTS = tuple(tuple(s for s, layer in enumerate(SLOT_LAYER) if layer == k) for k in range(LAYERS))
LAYER_RATE = tuple(len(slots) for slots in LAYER_SLOTS)  # codes per frame in each layer: 1, 2, 4

# Numbers k of the tokenizer's `<custom_token_k>` (published ids: 128256 + k).
CUSTOM_TOKEN = "<custom_token_{}>"
CUSTOM = {
    "start_of_speech": 1, "end_of_speech": 2, "start_of_human": 3, "end_of_human": 4,
    "start_of_ai": 5, "end_of_ai": 6, "pad": 7, "audio_start": 10,
}  # fmt: skip
BOS_TOKEN, END_OF_TEXT_TOKEN = "<|begin_of_text|>", "<|eot_id|>"  # Llama 3's own


class Codes(NamedTuple):
    """SNAC codes of T frames, as integer arrays in the codec's order, coarse to fine: [T], [2T], [4T]."""

    coarse: np.ndarray
    middle: np.ndarray
    fine: np.ndarray

    @property
    def frames(self) -> int:
        """T, the number of whole frames."""
        return len(self.coarse)

    def slice(self, start: int, stop: int) -> Codes:
        """The frames [start, stop) of every layer."""
        return Codes(*(np.asarray(c)[start * r : stop * r] for c, r in zip(self, LAYER_RATE, strict=True)))

    @staticmethod
    def concatenate(parts: Sequence[Codes]) -> Codes:
        """Join code sequences in time; an empty list gives zero frames."""
        if not parts:
            return Codes(*(np.zeros(0, np.int64) for _ in LAYER_RATE))
        return Codes(*(np.concatenate(layer) for layer in zip(*parts, strict=True)))


class Stop(StrEnum):
    """Why a token sequence ended."""

    END_OF_SPEECH = "end_of_speech"
    OUT_OF_RANGE = "out_of_range"
    END_OF_IDS = "end_of_ids"  # nothing wrong: the ids simply ran out


@dataclass(frozen=True)
class StopReason:
    """What ended a sequence, where, and how many ids of an unfinished last frame were dropped."""

    kind: Stop
    index: int  # position in the ids where it ended (the offending id, or len(ids))
    token_id: int | None = None  # the id at that position
    dropped: int = 0  # ids of the incomplete last frame, 0..6
    detail: str = ""  # plain language

    def __str__(self) -> str:
        return self.detail


@dataclass(frozen=True)
class TokenLayout:
    """Where the special and audio ids stand in one tokenizer's vocabulary."""

    bos: int
    end_of_text: int
    start_of_speech: int
    end_of_speech: int
    start_of_human: int
    end_of_human: int
    start_of_ai: int
    end_of_ai: int
    pad: int
    audio_start: int

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> TokenLayout:
        """Derive the ids from the names `<custom_token_k>`, `<|begin_of_text|>` and `<|eot_id|>`.

        Works for a tokenizer with a smaller text vocabulary, as long as the audio tokens are contiguous.
        Raises UserError naming the first token that is missing or out of place.
        """
        vocabulary = tokenizer.get_vocab()

        def find(name: str) -> int:
            if name not in vocabulary:
                raise UserError(
                    f"the tokenizer has no token {name} ({len(vocabulary)} tokens in all), so its model "
                    "was not made for Orpheus speech: use an Orpheus base such as "
                    "unsloth/orpheus-3b-0.1-ft"
                )
            return int(vocabulary[name])

        ids = {field: find(CUSTOM_TOKEN.format(k)) for field, k in CUSTOM.items()}
        layout = cls(bos=find(BOS_TOKEN), end_of_text=find(END_OF_TEXT_TOKEN), **ids)
        for offset in range(FRAME_SLOTS * CODEBOOK_SIZE):
            name = CUSTOM_TOKEN.format(CUSTOM["audio_start"] + offset)
            if find(name) != layout.audio_start + offset:
                raise UserError(
                    f"the tokenizer's audio tokens are not contiguous: {name} has id {find(name)}, "
                    f"expected {layout.audio_start + offset}; use the tokenizer that came with the base"
                )
        return layout

    @property
    def custom_start(self) -> int:
        """The id of `<custom_token_0>`; every id below it is text or one of Llama's own control tokens."""
        return self.audio_start - CUSTOM["audio_start"]

    @property
    def audio_end(self) -> int:
        """One past the largest audio id."""
        return self.audio_start + FRAME_SLOTS * CODEBOOK_SIZE

    def slot_range(self, slot: int) -> range:
        """The ids that are legal in `slot` (0..6)."""
        start = self.audio_start + slot * CODEBOOK_SIZE
        return range(start, start + CODEBOOK_SIZE)

    def continuations(self, slot: int) -> tuple[range, ...]:
        """The ids that may follow in `slot` of well-formed speech: its codes, and end_of_speech between two frames."""
        end = range(self.end_of_speech, self.end_of_speech + 1)
        return (self.slot_range(slot), end) if slot == 0 else (self.slot_range(slot),)

    @property
    def slot_size(self) -> int:
        """How many ids each slot has."""
        return CODEBOOK_SIZE

    def slot_of(self, token_id: int) -> int | None:
        """The slot that an id belongs to, or None for an id that is not audio."""
        offset = int(token_id) - self.audio_start
        return offset // CODEBOOK_SIZE if 0 <= offset < FRAME_SLOTS * CODEBOOK_SIZE else None

    def legal(self, token_id: int, position: int) -> bool:
        """Whether `token_id` may stand at audio position `position` (0 = first after start_of_speech)."""
        return token_id in self.slot_range(position % FRAME_SLOTS)

    def flatten(self, codes: Sequence[Any]) -> np.ndarray:
        """Interleave codes [T], [2T], [4T] into token ids, int64 [7T].

        Raises UserError naming layer, index, value and range for a code outside [0, 4096), and for
        arrays whose lengths are not in the ratio 1 : 2 : 4 or that are not integers.
        """
        layers = [np.asarray(layer) for layer in codes]
        lengths = [layer.shape for layer in layers]
        frames = len(layers[0]) if layers and layers[0].ndim == 1 else -1
        if lengths != [(frames * rate,) for rate in LAYER_RATE]:
            raise UserError(f"codes have shapes {lengths}, expected [T], [2T], [4T] (SNAC 24 kHz, coarse to fine)")
        frame_ids = np.empty((frames, FRAME_SLOTS), np.int64)
        for k, (layer, slots) in enumerate(zip(layers, LAYER_SLOTS, strict=True)):
            if layer.dtype.kind not in "iu":
                raise UserError(f"codes of layer {k + 1} have dtype {layer.dtype}, expected integers")
            wrong = (layer < 0) | (layer >= CODEBOOK_SIZE)
            if wrong.any():
                at = int(wrong.argmax())
                raise UserError(
                    f"code {int(layer[at])} at index {at} of layer {k + 1} is outside "
                    f"0..{CODEBOOK_SIZE - 1}: the codec is not SNAC 24 kHz or the codes are damaged"
                )
            frame_ids[:, slots] = layer.reshape(frames, len(slots))
        frame_ids += self.audio_start + CODEBOOK_SIZE * np.arange(FRAME_SLOTS)
        return frame_ids.reshape(-1)

    def unflatten(self, ids: Any) -> tuple[Codes, StopReason]:
        """Split token ids [N] (everything after start_of_speech) into codes, up to the first bad frame.

        Stops before the first frame that holds an id outside its slot's range: clamping such an id
        would play noise. An incomplete last frame is dropped, and the reason says so. Never raises
        for any integers.
        """
        sequence = np.asarray(ids, dtype=np.int64).reshape(-1)
        starts = self.audio_start + CODEBOOK_SIZE * np.arange(FRAME_SLOTS)
        codes = sequence - np.resize(starts, len(sequence))
        wrong = (codes < 0) | (codes >= CODEBOOK_SIZE)
        end = int(wrong.argmax()) if wrong.any() else len(sequence)
        frames, dropped = divmod(end, FRAME_SLOTS)
        grid = codes[: frames * FRAME_SLOTS].reshape(frames, FRAME_SLOTS)
        layers = Codes(*(grid[:, slots].reshape(-1) for slots in LAYER_SLOTS))
        return layers, self.explain(end, int(sequence[end]) if end < len(sequence) else None, dropped)

    def explain(self, index: int, token_id: int | None, dropped: int) -> StopReason:
        """The StopReason for a sequence that ended at `index` on `token_id` (None: the ids ran out)."""
        tail = f"; the {dropped} ids of the unfinished last frame were dropped" if dropped else ""
        slot = index % FRAME_SLOTS
        if token_id is None:
            return StopReason(Stop.END_OF_IDS, index, None, dropped, f"the ids ended after {index}{tail}")
        if token_id == self.end_of_speech:
            return StopReason(Stop.END_OF_SPEECH, index, token_id, dropped, f"end of speech at {index}{tail}")
        actual, allowed = self.slot_of(token_id), self.slot_range(slot)
        name = next((n for n, value in vars(self).items() if value == token_id and n != "audio_start"), None)
        what = f"belongs to slot {actual}" if actual is not None else f"is {name}" if name else "is not an audio token"
        return StopReason(
            Stop.OUT_OF_RANGE,
            index,
            token_id,
            dropped,
            f"id {token_id} at {index} {what}; slot {slot} allows {allowed[0]}..{allowed[-1]}{tail}",
        )


ORPHEUS = TokenLayout(bos=128000, end_of_text=128009, start_of_speech=128257, end_of_speech=128258,
                      start_of_human=128259, end_of_human=128260, start_of_ai=128261, end_of_ai=128262,
                      pad=128263, audio_start=128266)  # fmt: skip
"""The published layout: Llama-3.2's 128256 text ids, then `<custom_token_k>` at 128256 + k (Canopy, Unsloth)."""


class FrameStream:
    """Collects ids one by one and hands out whole frames: the streaming twin of `TokenLayout.unflatten`."""

    def __init__(self, layout: TokenLayout) -> None:
        self.layout = layout
        self.count = 0  # legal ids so far
        self.stop: StopReason | None = None
        self._frame: list[int] = []

    def push(self, token_id: int) -> Codes | None:
        """Take one id; returns one frame of codes when it completes, else None. Ids after the stop are ignored."""
        if self.stop is not None:
            return None
        if not self.layout.legal(token_id, self.count):
            self.stop = self.layout.explain(self.count, int(token_id), len(self._frame))
            return None
        self._frame.append(int(token_id))
        self.count += 1
        if len(self._frame) < FRAME_SLOTS:
            return None
        codes, _ = self.layout.unflatten(self._frame)
        self._frame = []
        return codes

    def finish(self) -> StopReason:
        """Why it ended; END_OF_IDS if no id ended it."""
        return self.stop or self.layout.explain(self.count, None, len(self._frame))
