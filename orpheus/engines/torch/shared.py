"""One model for many callers: streams that are asked for from many threads run as one batch, which they join and leave.

A worker thread owns the model. Streams put their rows into its queue and wait for ids; between two steps the worker
takes out the rows that ended or whose reader went away, and lets the next ones in, in the order in which they came.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from queue import Empty, SimpleQueue

from orpheus.config import SamplingOptions
from orpheus.engines.base import Engine, check_lengths
from orpheus.engines.torch.engine import TorchEngine
from orpheus.engines.torch.llama import LlamaDecoder
from orpheus.engines.torch.slots import Row, Singles, Slots
from orpheus.errors import UserError
from orpheus.format.tokens import FRAME_SLOTS

Items = list[tuple[int, int]]  # (row, id)


def share(engine: Engine, slots: int) -> Engine:
    """An engine whose `stream` may be called from many threads at the same time.

    The PyTorch engine gets a running batch of at most `slots` rows. The others are safe as they are: vLLM, TensorRT-LLM
    and servers batch their callers themselves; llama.cpp and speculative decoding give each stream a cache of its own.
    """
    return SharedEngine(engine, slots) if isinstance(engine, TorchEngine) else engine


class SharedEngine:
    """A `TorchEngine` for many callers. A row's ids are those that it gives for that row alone, but for rounding.

    Sums of a batch are rounded in another order than those of one row: where two ids are (nearly) equally likely, this
    engine may draw the other one. In 32 bit that is rare (no token of 23,120 with the embedded base). In 16 bit many
    ids are equally likely, so a CPU computes two rows at least: that, and whole blocks of columns, makes what a row
    draws independent of its neighbours there, if not the same as `TorchEngine`'s. On a GPU it is not.
    """

    def __init__(self, engine: TorchEngine, slots: int) -> None:
        """slots: most rows that run at the same time; others wait for their turn."""
        if slots < 1:
            raise UserError(f"slots is {slots}, expected 1 or more")
        self.engine, self.slots = engine, slots
        self.name, self.layout = engine.name, engine.layout
        self._worker = _Worker(engine, slots)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        # Not kept alive by its own thread: an engine that nobody has any more ends it.
        self._end = weakref.finalize(self, self._worker.end)

    @property
    def context_length(self) -> int:
        """Most tokens, prompt and speech together."""
        return self.engine.context_length

    def stream(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingOptions, seeds: Sequence[int]
    ) -> Iterator[tuple[int, int]]:
        """Yield `(row, id)`, a frame's worth at a time. The rows are in the queue when this returns.

        Closing the iterator, from any thread, or dropping it takes its rows out before the next step. UserError for a
        prompt that does not fit the context, or if the engine is closed; what goes wrong later is raised by `next`.
        """
        check_lengths(prompts, sampling.max_new_tokens, self.context_length)
        reader = _Reader(len(prompts))
        rows = [
            Row(list(prompt), sampling, seed, reader, index)
            for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
        with self._lock:
            if self._closed:
                raise _closed()
            if self._thread is None:
                self._thread = self._worker.start()
            self._worker.incoming.put(rows)
        return _Stream(self, reader)

    def close(self) -> None:
        """End the thread and free the running batch; streams that are not finished get a UserError."""
        with self._lock:
            self._closed = True
        self._end()


class _Reader:
    """Where the ids of one stream arrive."""

    def __init__(self, running: int) -> None:
        self.running = running  # rows that have not ended; the worker counts
        self.closed = False  # nobody reads any more; set from any thread
        # None: no more will come. `put` is safe in a finaliser, whatever that interrupts.
        self.arrived: SimpleQueue[Items | Exception | None] = SimpleQueue()

    def take(self, row: Row) -> None:
        """Hand over the new ids of a row."""
        if row.new:
            self.arrived.put([(row.index, token) for token in row.new])
            row.new = []

    def row_ended(self) -> None:
        """Note the end of one row."""
        self.running -= 1
        if not self.running:
            self.arrived.put(None)


class _Stream:
    """The iterator of one stream."""

    def __init__(self, engine: SharedEngine, reader: _Reader) -> None:
        self._engine = engine  # its thread must go on as long as somebody reads
        self._reader = reader
        self._items: deque[tuple[int, int]] = deque()
        if not reader.running:
            self.close()

    def __iter__(self) -> _Stream:
        return self

    def __next__(self) -> tuple[int, int]:
        while not self._items and not self._reader.closed:
            arrived = self._reader.arrived.get()
            if isinstance(arrived, list):
                self._items.extend(arrived)
                continue
            self.close()
            if arrived is not None:
                raise arrived
        if self._reader.closed:
            raise StopIteration
        return self._items.popleft()

    def close(self) -> None:
        """Stop the rows. May be called from any thread, also while another one waits for an id."""
        self._reader.closed = True
        self._reader.arrived.put(None)

    __del__ = close


class _Worker:
    """What the thread does. It takes no lock, so a finaliser that runs in it can't stop it."""

    def __init__(self, engine: TorchEngine, slots: int) -> None:
        self.engine, self.slots = engine, slots
        self.incoming: SimpleQueue[list[Row] | None] = SimpleQueue()  # None: end
        self.waiting: deque[Row] = deque()
        self.groups: dict[str, Slots | Singles] = {}  # by kind of decoding: each has another output head
        self.frame_s = 0.0  # how long the last frame took
        self.thread: threading.Thread | None = None

    def start(self) -> threading.Thread:
        """Start the thread."""
        self.thread = threading.Thread(target=self.work, name="shared-engine", daemon=True)
        self.thread.start()
        return self.thread

    def end(self) -> None:
        """End the thread, after the step that it is in."""
        self.incoming.put(None)
        if self.thread and self.thread is not threading.current_thread():
            self.thread.join()

    @property
    def running(self) -> int:
        """Rows that run."""
        return sum(len(group.rows) for group in self.groups.values())

    def work(self) -> None:
        """Until the end: take rows, step them. Sleeps where there is nothing to do."""
        while self.receive():
            self.turn()
        self.fail(_closed())

    def turn(self) -> None:
        """Let rows go and come, and step those that are there."""
        try:
            self.let_go()
            self.let_in()
            for group in self.groups.values():
                if group.rows:
                    self.step(group)
        except Exception as error:
            self.fail(error)

    def receive(self) -> bool:
        """Take what has come in; wait for it if there is nothing else to do. False: it is the end."""
        while True:
            idle = not self.waiting and not self.running
            try:
                rows = self.incoming.get(block=idle)
            except Empty:
                return True
            if rows is None:
                return False
            self.waiting.extend(rows)

    def let_go(self) -> None:
        """Take out the rows whose reader went away."""
        for group in self.groups.values():
            for index in reversed(range(len(group.rows))):
                if group.rows[index].owner.closed:
                    group.leave(index)
        self.waiting = deque(row for row in self.waiting if not row.owner.closed)

    def let_in(self) -> None:
        """Let waiting rows join, the first one first, where there is a place and a frame begins.

        Running prompts keeps the others waiting, so it takes no longer than a frame, or else one prompt.
        """
        started, joined = time.perf_counter(), 0
        while self.waiting and self.running < self.slots:
            row = self.waiting[0]
            if joined and time.perf_counter() - started >= self.frame_s:
                return
            group = self.group(row.sampling)
            if not group.at_border:
                return
            group.join(row)  # it is in the queue as long as this may fail
            self.waiting.popleft()
            joined += 1

    def group(self, sampling: SamplingOptions) -> Slots | Singles:
        """The rows that this one would join. Memory of a group that is empty is not kept beside another's."""
        kind = sampling.decoding
        if kind not in self.groups:
            self.groups = {name: group for name, group in self.groups.items() if group.rows}
            own_steps = self.engine.decoder is LlamaDecoder
            self.groups[kind] = Slots(self.engine, kind, self.slots) if own_steps else Singles(self.engine)
        return self.groups[kind]

    def step(self, group: Slots | Singles) -> None:
        """One step of a group: hand out whole frames, and what rows that ended have drawn; take these out."""
        started, ended = time.perf_counter(), []
        drawn = group.step()
        for index, (row, tokens) in enumerate(zip(group.rows, drawn, strict=True)):
            over = False
            for token in tokens[: row.sampling.max_new_tokens - row.count]:
                row.new.append(token)
                row.count += 1
                over = not self.engine.layout.legal(token, row.count - 1)
                if over:
                    break
            over |= row.count == row.sampling.max_new_tokens
            if over or row.count % FRAME_SLOTS == 0:
                row.owner.take(row)
            if over:
                ended.append(index)
        for index in reversed(ended):
            owner = group.rows[index].owner
            group.leave(index)
            owner.row_ended()
        steps = FRAME_SLOTS if len(drawn[0]) == 1 else 1
        self.frame_s = steps * (time.perf_counter() - started)

    def fail(self, error: Exception) -> None:
        """Hand an error to every stream that runs or waits, each its own, and begin anew."""
        rows = [*self.waiting, *(row for group in self.groups.values() for row in group.rows)]
        self.waiting.clear()
        self.groups = {}
        for row in rows:
            row.owner.take(row)
        for owner in {row.owner for row in rows}:
            own: Exception = UserError(str(error))
            if not isinstance(error, UserError):
                own = RuntimeError(f"speaking failed ({type(error).__name__}): {error}")
                own.__cause__ = error
            owner.arrived.put(own)


def _closed() -> UserError:
    return UserError("the engine was closed: open the voice again")
