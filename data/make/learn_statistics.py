"""Write tiny_orpheus/orpheus.json: voices, token ids, and what is usual in speech and tags (`orpheus.data.usual`).

    python data/make/learn_statistics.py

A training learns that by itself. The base learns from texts alone, so here it is learnt from the test clips of its
voices, which were made by the same grammar and synthesiser.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from orpheus.codec.snac import SnacCodec
from orpheus.config import PRESETS, CorpusOptions, embedded_path
from orpheus.data.clips import read_recording
from orpheus.data.sources import open_source
from orpheus.data.usual import Heard, learn
from orpheus.format.prompt import find_tags
from orpheus.format.tokens import TokenLayout
from orpheus.model.base import load_tokenizer
from orpheus.model.provenance import Provenance, versions

VOICES = ("dan", "leo", "tara")


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
    clips = heard("embedded:test_corpus", SnacCodec.load(tiny.codec), VOICES)
    usual, tags = learn(clips), Counter(tag for clip in clips for tag in find_tags(clip.text))
    layout = TokenLayout.from_tokenizer(load_tokenizer(str(folder)))
    made = Provenance(base=tiny.base, codec=tiny.codec, layout=layout, base_voices=VOICES, versions=versions(),
                      speech_statistics=usual.as_dict(), tags=dict(sorted(tags.items())))  # fmt: skip
    made.save(folder)
    print(usual, tags)


if __name__ == "__main__":
    main()
