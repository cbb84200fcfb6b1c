"""What a base says itself, mixed into a training so that it keeps its tags and its voices (`--replay N`).

    sentences x tags x voices of the base -> spoken by it -> the good ones, in the cache -> examples beside the clips

A corpus without tags teaches that tags are silent. Utterances of the base, which knows what they sound like, are the
usual remedy: rehearsal. They are made once: each is kept as it is spoken, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.config import BASE_VOICES
from orpheus.data.corpus import Corpus, table_of
from orpheus.data.replay_texts import OF_FEW_WORDS, PLACE, SENTENCES
from orpheus.data.usual import SpeechStatistics
from orpheus.errors import UserError
from orpheus.format.prompt import TAGS_BY_LANGUAGE, Renderer, tag_census, unknown_words
from orpheus.format.tokens import Codes, Stop, StopReason, TokenLayout
from orpheus.model.provenance import Provenance, read_json, write_json

BATCH = 8  # utterances spoken at once
ATTEMPTS = 3  # with other seeds, before a text is left out
ATTEMPT_STEP = 1_000_003  # between their seeds: far more than texts are spoken
LANGUAGE_OF: dict[str, str] = {
    voice: language
    for language, voices in {
        "en": BASE_VOICES["canopylabs/orpheus-3b-0.1-ft"],
        **{name: BASE_VOICES[f"canopylabs/3b-{name}-ft-research_release"] for name in ("fr", "de", "ko", "zh")},
        "es": ("javi", "sergio", "maria"),
        "it": ("pietro", "giulia", "carlo"),
    }.items()
    for voice in voices
}
"""The language that a published voice speaks."""


@dataclass(frozen=True)
class Line:
    """What is to be said, and by whom."""

    text: str
    voice: str | None


Spoken = tuple[Codes, StopReason]
Speak = Callable[[Sequence[Line], Sequence[int]], Sequence[Spoken]]
"""Speaks lines, each with its seed: the whole frames of each and why it ended."""


@dataclass(frozen=True)
class Replay:
    """Good utterances of a base, and how many were left out for which reason."""

    lines: list[Line]
    codes: list[Codes]
    left_out: dict[str, int]
    seconds: float

    def about(self) -> dict[str, Any]:
        """For `Provenance.data`: counts, seconds, voices, tags, and a hash of the codes."""
        found = hashlib.sha256()
        for line, codes in zip(self.lines, self.codes, strict=True):
            found.update(f"{line.voice}: {line.text}\n".encode())
            for layer in codes:
                found.update(layer.astype("<i2").tobytes())
        return {
            "utterances": len(self.lines),
            "seconds": round(self.seconds, 1),
            "voices": sorted({line.voice for line in self.lines if line.voice}),
            "tags": dict(tag_census(line.text for line in self.lines).most_common()),
            "left_out": self.left_out,
            "hash": found.hexdigest(),
        }


def lines_of(base: str, made: Provenance | None, words: Sequence[str], count: int, seed: int) -> list[Line]:
    """`count` lines for a base, its tags and voices in turn: the first n of more lines are those of n.

    made: what the base says of itself; words: all that it knows, empty for any. UserError for a base of which voices or
    tags are not known.
    """
    voices: Sequence[str | None] = (made.voices or made.base_voices) if made else voices_by_name(base)
    choices = {voice: _sentences(base, voice, made, words) for voice in voices or ([None] if words else [])}
    if not choices:
        raise UserError(
            f"--replay lets the base speak with its own voices, and those of '{base}' are not known: it is for "
            "Canopy's -ft bases, and for those that name voices in orpheus.json. Train without --replay"
        )
    rng = random.Random(f"replay {seed}")
    pairs = [(voice, tag) for voice, (_, tags) in choices.items() for tag in tags]
    rng.shuffle(pairs)
    orders = {voice: rng.sample(sentences, len(sentences)) for voice, (sentences, _) in choices.items()}
    lines = []
    for i in range(count):
        voice, tag = pairs[i % len(pairs)]
        order = orders[voice]
        sentence = order[(i % len(pairs) + i // len(pairs)) % len(order)]
        lines.append(Line(sentence.replace(PLACE, f"<{tag}>"), voice))
    return lines


def voices_by_name(base: str) -> tuple[str, ...]:
    """The voices of a published base, by its hub id or by the name of a folder that holds a copy of it."""
    name = base.rstrip("/").rpartition("/")[2]
    return next((v for hub_id, v in BASE_VOICES.items() if hub_id == base or hub_id.endswith(f"/{name}")), ())


def _sentences(base: str, voice: str | None, made: Provenance | None, words: Sequence[str]) -> tuple[Any, Any]:
    """The sentences that a voice can say, and its tags."""
    if words:
        known = frozenset(words)
        sentences = [s for s in OF_FEW_WORDS if not unknown_words([s.replace(PLACE, "")], (), known)]
        tags = tuple(made.tags) if made else ()
    else:
        language = LANGUAGE_OF.get(voice or "", "")
        sentences = list(SENTENCES.get(language, ()))
        tags = (tuple(made.tags) if made else ()) or TAGS_BY_LANGUAGE.get(language, ())
    if not sentences or not tags:
        raise UserError(
            f"--replay lets the base speak with its own tags, and for the voice {voice or 'without a name'} of "
            f"'{base}' no {'sentences' if tags else 'tags'} are known here: train without --replay"
        )
    return sentences, tags


def what_is_wrong(text: str, codes: Codes, stop: StopReason, seconds: float, usual: SpeechStatistics) -> str:
    """Why an utterance must not be learnt from, in a few words; '' for a good one."""
    if stop.kind is Stop.OUT_OF_RANGE:
        return "out of its slot"
    if stop.kind is not Stop.END_OF_SPEECH:
        return "did not end"
    if not codes.frames or seconds < usual.quickest * usual.expected_s(text):
        return "too short for its text"
    return "too long for its text" if seconds > usual.slowest * usual.expected_s(text) else ""


def make_replay(lines: Sequence[Line], speak: Speak, layout: TokenLayout, folder: Path, *, samples_per_frame: int,
                seed: int, progress: bool = True) -> Replay:  # fmt: skip
    """Let the base speak the lines, but for those that `folder` has; bad ones again, `ATTEMPTS` times in all.

    folder: of the cache, for one base, one way of drawing and one seed. UserError if not one utterance is good.
    """
    from tqdm.auto import tqdm

    usual = SpeechStatistics()
    files = [folder / f"{i:05}.json" for i in range(len(lines))]
    done = {i: found for i, line in enumerate(lines) if (found := _kept(files[i], line, layout))}
    todo = [i for i in range(len(lines)) if i not in done]
    reasons: dict[int, str] = {}
    with tqdm(total=len(todo), desc="replay", unit="utterance", disable=not progress or not todo) as bar:
        for attempt in range(ATTEMPTS):
            for batch in [todo[at : at + BATCH] for at in range(0, len(todo), BATCH)]:
                seeds = [seed + i + attempt * ATTEMPT_STEP for i in batch]
                for i, (codes, stop) in zip(batch, speak([lines[i] for i in batch], seeds), strict=True):
                    seconds = codes.frames * samples_per_frame / SAMPLE_RATE_HZ
                    reasons[i] = what_is_wrong(lines[i].text, codes, stop, seconds, usual)
                    if not reasons[i] or attempt + 1 == ATTEMPTS:
                        ids = [] if reasons[i] else layout.flatten(codes).tolist()
                        done[i] = _keep(files[i], lines[i], ids, reasons[i], layout)
                        bar.update()
            todo = [i for i in todo if i not in done]
    good = [i for i in range(len(lines)) if not done[i][1]]
    left_out = Counter(done[i][1] for i in range(len(lines)) if done[i][1])
    if not good:
        raise UserError(f"--replay: not one of {len(lines)} utterances of the base was good "
                        f"({', '.join(f'{n} {why}' for why, n in left_out.items())}): train without it")  # fmt: skip
    kept = [done[i][0] for i in good]
    frames = sum(codes.frames for codes in kept)
    return Replay([lines[i] for i in good], kept, dict(left_out.most_common()),
                  frames * samples_per_frame / SAMPLE_RATE_HZ)  # fmt: skip


def _keep(file: Path, line: Line, ids: list[int], reason: str, layout: TokenLayout) -> tuple[Codes, str]:
    write_json(file, {"text": line.text, "voice": line.voice, "left_out": reason, "ids": ids})
    return layout.unflatten(ids)[0], reason


def _kept(file: Path, line: Line, layout: TokenLayout) -> tuple[Codes, str] | None:
    """What was kept of a line; None: nothing, or it is damaged or of another text."""
    try:
        found = read_json(file, "delete it") if file.is_file() else {}
        if (found.get("text"), found.get("voice")) != (line.text, line.voice):
            return None
        codes, stop = layout.unflatten(found["ids"])
        whole = stop.kind is Stop.END_OF_IDS and not stop.dropped and bool(codes.frames) != bool(found["left_out"])
        return (codes, str(found["left_out"])) if whole else None
    except (UserError, KeyError, ValueError, TypeError):
        return None


def cache_folder(cache_dir: Path, identity: dict[str, Any]) -> Path:
    """Where the utterances lie that one base says in one way: `identity` tells them from all others."""
    key = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return cache_dir / "replay" / key


def mixed(corpus: Corpus, replay: Replay, renderer: Renderer, max_seq_length: int) -> Corpus:
    """The corpus with the utterances among what is trained on, and none in what is validated on."""
    from datasets import concatenate_datasets

    examples = [renderer.example(line.text, codes, line.voice)
                for line, codes in zip(replay.lines, replay.codes, strict=True)]  # fmt: skip
    fitting = [i for i, example in enumerate(examples) if len(example.input_ids) <= max_seq_length]
    if long := len(examples) - len(fitting):
        frames = sum(c.frames for c in replay.codes)
        kept = [replay.codes[i] for i in fitting]
        replay = Replay([replay.lines[i] for i in fitting], kept, {**replay.left_out, "too many tokens": long},
                        replay.seconds * sum(c.frames for c in kept) / frames)  # fmt: skip
    train = concatenate_datasets([corpus.train, table_of(examples[i] for i in fitting)])
    return replace(corpus, train=train, replay=replay.about())
