"""Engines that are called from several threads at once, as a server does: every stream has its own ids."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import closing
from functools import partial

from orpheus.config import SamplingOptions
from orpheus.engines import background
from orpheus.engines.background import Background
from orpheus.engines.llamacpp.engine import LlamaCppEngine
from orpheus.engines.remote.engine import RemoteEngine
from orpheus.format.tokens import ORPHEUS
from tests.support.scripted_server import DONE, END, ScriptedServer, event, sends, speech, usage
from tests.support.threads import WAIT_S, in_threads
from tests.support.voices import rows_of


def test_a_server_is_asked_by_many_threads_at_once():
    """None is answered before all have asked; one goes away, the others don't notice."""
    scripted, together = ScriptedServer(), threading.Barrier(6)

    def script(body, send):
        if body["max_tokens"] > 1:  # not the question whether it takes ids
            together.wait(WAIT_S)
        for token_id in speech(5, seed=body["seed"]):
            send(event("", [token_id]))
            time.sleep(0.002)
        send(event("", [END], "stop") + usage(36) + DONE)

    scripted.script = sends(event("", [END], "stop"), usage(1), DONE)
    prompt = [ORPHEUS.start_of_human, ORPHEUS.bos, 40, 41, ORPHEUS.end_of_text, ORPHEUS.start_of_speech]
    try:
        with closing(RemoteEngine(scripted.url, ORPHEUS, 4096)) as engine:
            scripted.script = script

            def call(index):
                stream = engine.stream([prompt], SamplingOptions(max_new_tokens=100), [index])
                if index == 0:
                    taken = [next(stream)[1] for _ in range(3)]
                    stream.close()
                    return taken
                return [token for _, token in stream]

            spoken = in_threads(*(partial(call, index) for index in range(6)))
    finally:
        scripted.stop()
    assert spoken == [list(speech(5, seed=0))[:3], *([*speech(5, seed=i), END] for i in range(1, 6))]


def test_an_iterator_that_is_dropped_in_the_loop_s_own_thread_does_not_wait_for_itself(monkeypatch):
    """Garbage is collected in any thread, so also there; the loop would stand still for as long as it waits."""
    monkeypatch.setattr(background, "CLEANUP_S", WAIT_S)
    loop = Background("test")

    async def row():
        yield 1
        await asyncio.sleep(WAIT_S)

    async def close(stream):
        stream.close()

    try:
        stream = loop.merge([row()])
        assert next(stream) == (0, 1)
        began = time.perf_counter()
        loop.run(close(stream))
        assert time.perf_counter() - began < WAIT_S / 2
    finally:
        loop.stop()


class Context:
    """Stands in for llama.cpp's, and notices when two threads have it."""

    def __init__(self, model, length, exact=False) -> None:
        self.length, self.users = length, 0
        model.made.append(self)

    def keep(self, prompt):
        return 0

    def feed(self, ids):
        import numpy as np

        self.users += 1
        assert self.users == 1, "two streams have one context"
        time.sleep(0.0005)
        self.users -= 1
        return np.arange(300, dtype=np.float32)


def test_no_two_threads_have_one_context_of_llama_cpp(layout, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr("orpheus.engines.llamacpp.engine.LlamaCppContext", Context)
    model = SimpleNamespace(layout=layout, context_length=4096, made=[], tokenizer=SimpleNamespace(tokens=range(300)))
    engine = LlamaCppEngine(model)  # type: ignore[arg-type]
    options = SamplingOptions(temperature=0, max_new_tokens=1)

    def call():
        return [rows_of(engine, [[1, 2]], options, [0]) for _ in range(50)]

    assert in_threads(*[call] * 8) == [[[[299]]] * 50] * 8
    assert len(engine._idle) == 1 and model.made
    engine.close()
    assert not engine._idle
