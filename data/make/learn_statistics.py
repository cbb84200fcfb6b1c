"""What is usual in the tiny base's voices, and their tags, into tiny_orpheus/orpheus.json (`orpheus.data.usual`).

    python data/make/learn_statistics.py

A training does this by itself. The base's own 40 hours of clips are not kept, so it is learnt from the test clips of
its voices, which were made by the same grammar and synthesiser.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from orpheus.codec.snac import SnacCodec
from orpheus.config import PRESETS, CorpusOptions, embedded_path
from orpheus.data.clips import read_recording
from orpheus.data.sources import open_source
from orpheus.data.usual import Heard, learn
from orpheus.format.prompt import find_tags
from orpheus.model.provenance import Provenance


def heard(dataset: str, codec: SnacCodec, voices: tuple[str, ...] = ()) -> list[Heard]:
    """The clips of a data set (of these voices, or all) as the guard learns from them."""
    clips = []
    for record in open_source(CorpusOptions(dataset=dataset)).records():
        if not voices or record.voice in voices:
            read = read_recording(record, 0.0)
            (codes,) = codec.encode([read.samples])
            seconds = len(read.samples) / 24000
            clips.append(Heard(str(record.text), seconds, read.loudness_db, read.silence_s, codes))
    return clips


def main() -> None:
    tiny = PRESETS["tiny"]
    folder = Path(embedded_path(tiny.base))
    made = Provenance.load(folder)
    assert made is not None
    clips = heard("embedded:test_corpus", SnacCodec.load(tiny.codec), made.base_voices)
    usual, tags = learn(clips), Counter(tag for clip in clips for tag in find_tags(clip.text))
    replace(made, speech_statistics=usual.as_dict(), tags=dict(sorted(tags.items()))).save(folder)
    print(usual, tags)


if __name__ == "__main__":
    main()
