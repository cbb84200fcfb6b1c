"""The rows that run at the same time in one model, each at its own place: they join and leave between steps.

`Slots` steps them as one batch. All rows that run are at the same slot of their frames, since a row joins where the
others begin a frame; so one slice of the output head serves all. `Singles` is for models that `LlamaDecoder` does not
compute: every row is a batch of its own, and they are stepped one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Self

from orpheus.config import Decoding, SamplingOptions
from orpheus.engines.batch import Batch
from orpheus.engines.sampling import CANDIDATES, SeenIds, draw_in_turns, draw_index, scale
from orpheus.engines.torch.engine import TorchEngine
from orpheus.engines.torch.frames import BOUND_STEP, Frames
from orpheus.format.tokens import FRAME_SLOTS

SHRINK = 4
BLOCK = 32  # columns: attention over whole blocks rounds its sums alike, however many of them are masked
IDLE_TOP_P = 1e-6  # of rows that only fill a bucket up: one candidate is always enough for them


@dataclass(eq=False)
class Row:
    """One prompt on its way: what it is, and how far it is."""

    prompt: Sequence[int]
    sampling: SamplingOptions
    seed: int
    owner: Any = None  # who wants its ids
    index: int = 0  # which of its owner's rows
    count: int = 0  # ids drawn
    column: int = 0  # tokens in the cache
    flat: bool = False  # a short list of candidates was too short once
    new: list[int] = field(default_factory=list)  # ids drawn that the owner does not have yet


@dataclass(frozen=True)
class PerRow:
    """`SamplingOptions` of several rows, each field [B, 1]."""

    temperature: Any  # float32; 1 for rows that take the most likely id
    top_p: Any  # float64
    repetition_penalty: Any  # float32


class MixedBatch(Batch):
    """A batch whose rows each have their own column, step and sampling, all in `state`. It is stepped by `part`s."""

    greedy = False  # whether a row of this part takes the most likely id

    def prepare(self, rows: int, room: int) -> None:
        """Set memory aside for so many rows, as long as the decoder's."""
        import torch

        embedding, marked = self.decoder.embed.weight, self.ids_of[0] is not None

        def full(width: int, value: float, dtype: Any) -> Any:
            return torch.full((rows, width), value, dtype=dtype, device=self.device)

        self.state = {
            "hidden": full(embedding.shape[1], 0, embedding.dtype),
            "column": full(1, 0, torch.long)[:, 0],
            "step": full(1, 0, torch.long)[:, 0],
            "draws": full(room, 0, torch.float64),
            "token": full(1, self.pad, torch.long)[:, 0],
            "frame": full(FRAME_SLOTS + 1, 0, torch.long),
            "seen": full(self.vocabulary, 0, torch.bool) if marked else full(room, self.pad, torch.long),
            "temperature": full(1, 1, torch.float32),
            "top_p": full(1, IDLE_TOP_P, torch.float64),
            "penalty": full(1, 1, torch.float32),
            "greedy": full(1, 0, torch.bool)[:, 0],
        }
        self.seen = SeenIds([[0]], 1, self.device, 1 if marked else None)  # its table: a part's

    def part(self, start: int, stop: int, greedy: bool = False) -> Self:
        """The rows from `start` to before `stop` as a batch of their own, in the same memory."""
        other = copy(self)
        other.decoder, other.greedy = self.decoder.part(start, stop), greedy
        other.state = state = {name: tensor[start:stop] for name, tensor in self.state.items()}
        other.seen = copy(self.seen)
        other.seen.table = state["seen"]
        other.sampling = PerRow(state["temperature"], state["top_p"], state["penalty"])  # type: ignore[assignment]
        return other

    def set_sampling(self, row: int, sampling: SamplingOptions | None) -> None:
        """Let a row draw by these options; None: nobody wants what it draws."""
        greedy = sampling is not None and sampling.temperature == 0
        own = sampling is not None and not greedy
        values = {
            "temperature": sampling.temperature if sampling and own else 1.0,
            "top_p": sampling.top_p if sampling and own else IDLE_TOP_P,
            "penalty": sampling.repetition_penalty if sampling else 1.0,
            "greedy": greedy,
        }
        for name, value in values.items():
            self.state[name][row] = value

    def choose(self, logits: Any, uniform: Any, count: int | None) -> tuple[Any, Any]:
        """As `Batch.choose`, each row by its own options."""
        import torch

        options, enough = self.sampling, None
        best = logits.argmax(dim=-1) if self.greedy else None
        probabilities = scale(logits, options)
        if count == -1:
            index = draw_in_turns(probabilities, options.top_p, uniform)
        else:
            index, enough = draw_index(probabilities, options.top_p, uniform, count)
        return index if best is None else torch.where(self.state["greedy"], best, index), enough

    @property
    def count(self) -> int | None:
        """As `Batch.count`; rows for which no list is long enough are the caller's to know."""
        return CANDIDATES[-1] if self.ids_of[0] is None else None

    def move(self, source: int, target: int, columns: int) -> None:
        """Copy a row, with its first `columns` columns of the cache, over another."""
        for tensor in self.state.values():
            tensor[target] = tensor[source]
        cache = self.decoder.cache
        cache[:, :, target, :, :columns] = cache[:, :, source, :, :columns]

    def take_over(self, other: Self, rows: int) -> None:
        """Copy the first rows of another batch, which has no more room than this one."""
        for name, tensor in other.state.items():
            mine = self.state[name]
            if name == "seen" and not self.seen.marked:
                mine[:rows] = tensor[:rows, :1]  # what is not in use lists the first id again
            if tensor.dim() == 1:
                mine[:rows] = tensor[:rows]
            else:
                mine[:rows, : tensor.shape[1]] = tensor[:rows]
        cache = other.decoder.cache
        self.decoder.cache[:, :, :rows, :, : cache.shape[4]] = cache[:, :, :rows]


class Slots:
    """Rows of one kind of decoding, stepped as one batch: a token at a time on a CPU, a frame at a time on a GPU.

    The rows that run stand in the first places of one cache, whose length is that of the longest: where one leaves,
    the last takes its place. It grows when needed, and is made smaller when it is empty and a quarter would do.
    """

    batch: MixedBatch  # the memory of all places

    def __init__(self, engine: TorchEngine, decoding: Decoding, limit: int) -> None:
        """limit: most rows at once."""
        self.engine, self.limit = engine, limit
        self.decoding = SamplingOptions(decoding=decoding)
        self.rows: list[Row] = []
        self.slot = 0  # the place in its frame of the next id of every row
        self.fed = True  # whether the ids drawn last are in the cache
        self.room = self.places = 0
        # In 16 bit rounding decides much, so neighbours must not change it. A product of two rows or more is rounded
        # alike for any number of them, that of one row otherwise.
        steady = limit > 1 and engine.loaded.dtype.itemsize == 2
        self.least, self.block = (2, BLOCK) if steady else (1, 1)
        self.record = engine.record() if engine.by_frame else None
        self.parts: dict[tuple[int, bool], MixedBatch] = {}
        self.frames: dict[tuple[int, bool], Frames] = {}

    @property
    def at_border(self) -> bool:
        """Whether a row may join now."""
        return self.slot == 0

    def join(self, row: Row) -> None:
        """Run the prompt of a row, which steps with the others from now on."""
        self._feed()
        start, by_frame = len(self.rows), self.engine.by_frame
        count = row.sampling.max_new_tokens
        if by_frame:
            count = -(-count // FRAME_SLOTS) * FRAME_SLOTS  # the last frame is always whole
        self._fit(start + 1, len(row.prompt) + count)
        with self.engine.computing(1, prompts=True):
            place = self.batch.part(start, start + 1)
            place.begin([row.prompt], [row.seed], self.room)
            self.batch.set_sampling(start, row.sampling)
        row.column, row.flat = len(row.prompt), row.sampling.top_p >= 1 and row.sampling.temperature > 0
        self.rows.append(row)

    def step(self) -> list[list[int]]:
        """The next ids of each row: one, or a frame of them."""
        rows = self.rows
        greedy = any(row.sampling.temperature == 0 for row in rows)
        if self.engine.by_frame:
            return self._frame(greedy)
        self._feed()
        width = self._width(len(rows))
        with self.engine.computing(width):
            drawn = self._part(width, greedy).draw(self.slot).tolist()
        self.slot, self.fed = (self.slot + 1) % FRAME_SLOTS, False
        return [[token] for token in drawn[: len(rows)]]

    def leave(self, index: int) -> None:
        """Take a row out. The last one stands in its place then."""
        last = len(self.rows) - 1
        with self.engine.computing(1):
            if index != last:
                self.batch.move(last, index, self.rows[last].column)
            self.batch.set_sampling(last, None)
        self.rows[index] = self.rows[last]
        self.rows.pop()
        if not self.rows:
            self.slot, self.fed = 0, True

    def _feed(self) -> None:
        """Put the ids drawn last into the cache."""
        if self.fed:
            return
        width, columns = self._width(len(self.rows)), max(row.column for row in self.rows) + 1
        with self.engine.computing(width):
            self._part(width).advance(-(-columns // self.block) * self.block)
        for row in self.rows:
            row.column += 1
        self.fed = True

    def _frame(self, greedy: bool) -> list[list[int]]:
        count = len(self.rows)
        width = self._width(count)
        with self.engine.computing(width):
            part = self._part(width, greedy)
            if (width, greedy) not in self.frames:
                self.frames[width, greedy] = Frames(part, self.room, self.record)
            frames = self.frames[width, greedy]
            flat = any(row.flat for row in self.rows)
            frames.count = None if flat else part.count
            drawn = frames.run(max(row.column for row in self.rows))[:count]
        widened = part.count is not None and frames.count is None and not flat
        for row in self.rows:
            row.column += FRAME_SLOTS
            row.flat |= widened  # one of them is; as long as they run, no short list is tried
        return drawn

    def _width(self, rows: int) -> int:
        """How many rows are computed for so many that run."""
        if self.engine.by_frame:
            return 1 << (rows - 1).bit_length()  # few sizes, so that few graphs are recorded
        return max(rows, self.least)

    def _part(self, width: int, greedy: bool = False) -> MixedBatch:
        if (width, greedy) not in self.parts:
            self.parts[width, greedy] = self.batch.part(0, width, greedy)
        part, rows = self.parts[width, greedy], len(self.rows)
        if width > rows:  # places without a row begin anew each time: their columns must stay within the room
            part.state["column"][rows:] = 0
            part.state["step"][rows:] = 0
        return part

    def _fit(self, places: int, room: int) -> None:
        """See to it that there are so many places of so many columns."""
        # Graphs have addresses in them, so on a GPU all places are there from the beginning.
        places = self._width(self.limit if self.engine.by_frame else places)
        places = 1 << (places - 1).bit_length()
        room = -(-room // BOUND_STEP) * BOUND_STEP
        if self.places >= places and self.room >= room and (self.rows or self.room < SHRINK * room):
            return
        places, room = max(places, self.places), max(room, self.room if self.rows else 0)
        self.parts, self.frames = {}, {}
        if not self.rows and self.room:
            del self.batch  # nobody needs it: not both at once
        with self.engine.computing(1):
            batch = self.engine.batch(places, room, self.decoding, MixedBatch)
            batch.prepare(places, room)
            if self.rows:
                batch.take_over(self.batch, len(self.rows))
        self.batch, self.places, self.room = batch, places, room


class Singles:
    """Rows stepped one after another, each a batch of its own: for any model, and any kind of decoding."""

    at_border = True

    def __init__(self, engine: TorchEngine) -> None:
        self.engine = engine
        self.rows: list[Row] = []
        self.batches: list[Batch] = []

    def join(self, row: Row) -> None:
        """Run the prompt of a row, which steps with the others from now on."""
        room = len(row.prompt) + row.sampling.max_new_tokens
        with self.engine.computing(1, prompts=True):
            batch = self.engine.batch(1, room, row.sampling)
            batch.begin([row.prompt], [row.seed], room)
        row.column = len(row.prompt)
        self.rows.append(row)
        self.batches.append(batch)

    def step(self) -> list[list[int]]:
        """The next id of each row."""
        drawn = []
        for row, batch in zip(self.rows, self.batches, strict=True):
            with self.engine.computing(1):
                if row.count:
                    row.column += 1
                    batch.advance(row.column)
                drawn.append([int(batch.draw(row.count % FRAME_SLOTS)[0])])
        return drawn

    def leave(self, index: int) -> None:
        """Take a row out."""
        del self.rows[index], self.batches[index]
