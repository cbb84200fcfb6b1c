"""The battery: some texts that a voice in training speaks again and again, and its recordings to learn the limits from.

Half of the texts are fixed, in words that the voice knows; half are those of clips that are held out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from orpheus.config import SamplingOptions
from orpheus.data.clips import Clip
from orpheus.data.corpus import Corpus
from orpheus.evaluate.gates import Facts, Gates, Limits, facts_of, hear, judge, learn
from orpheus.evaluate.listen import Ears
from orpheus.format.pieces import length
from orpheus.format.prompt import find_tags, strip_tags, unknown_words
from orpheus.format.tokens import FRAME_SLOTS, TokenLayout
from orpheus.hearing.metrics import words
from orpheus.model.provenance import write_json
from orpheus.speak.guard import FRAME_S
from orpheus.speak.guard import Limits as Watched
from orpheus.speak.speech import Speech
from orpheus.speak.utterance import NoSpeech

if TYPE_CHECKING:
    from orpheus.codec.snac import SnacCodec

EACH = 8  # texts that are fixed, texts that are held out: what a T4 speaks in two batches
RECORDINGS, RECORDINGS_A_VOICE = 24, 4  # that the limits are learnt from, at least where there are so many
FIXED = (
    "Good morning, I am so happy to see you today.",
    "Oh no, <gasps> the tiger is in the kitchen. <laughs>",
    "<sighs> I missed you Anna, and it is very late.",
    "Please turn on the light in the bedroom.",
    "The weather will be sunny on Friday afternoon.",
    "I forgot to read the story about the elephant. <giggles>",
    "We found seven oranges and twelve apples behind the garage door.",
    "Thank you.",
)
"""In plain words, which the embedded base knows and most English corpora have."""


class Line(NamedTuple):
    """A text of the battery, who speaks it, and the name of its WAV."""

    text: str
    voice: str | None
    name: str


def battery_of(corpus: Corpus, known: Collection[str]) -> list[Line]:
    """The battery for a voice that is trained on a corpus; `known`: all words of its base, empty: it may know any.

    A fixed text whose words are in neither base nor corpus gives way to one that is trained on, so a corpus of another
    language has texts of its own. Voices take turns.
    """
    voices: tuple[str | None, ...] = corpus.voices or (None,)
    held_out = [clip for index, clip in enumerate(corpus.clips) if index in corpus.held_out]
    trained = [clip for index, clip in enumerate(corpus.clips) if index not in corpus.held_out]
    vocabulary = frozenset(known) or frozenset(word for clip in corpus.clips for word in words(clip.text))
    fixed = [text for text in (_with_tags(t, corpus.tags) for t in FIXED) if not unknown_words([text], (), vocabulary)]
    lines = [Line(text, voices[i % len(voices)], f"fixed_{i}") for i, text in enumerate(fixed)]
    lines += [Line(clip.text, clip.voice, f"trained_{i}")
              for i, clip in enumerate(spread(trained, EACH - len(fixed)))]  # fmt: skip
    return lines + [Line(clip.text, clip.voice, f"held_out_{i}")
                    for i, clip in enumerate(spread(held_out, EACH))]  # fmt: skip


def _with_tags(text: str, tags: Collection[str]) -> str:
    """The text without the tags that the voice was not taught."""
    return text if set(find_tags(text)) <= set(tags) else strip_tags(text)


def spread(clips: Iterable[Clip], count: int) -> list[Clip]:
    """So many of the clips, short and long ones alike, of all voices in turn; the same for the same clips."""
    by_voice: dict[str | None, list[Clip]] = defaultdict(list)
    for clip in sorted(clips, key=lambda clip: (length(clip.text), clip.text)):
        by_voice[clip.voice].append(clip)
    chosen: list[Clip] = []
    for turn, (_, part) in enumerate(sorted(by_voice.items(), key=lambda pair: pair[0] or "")):
        share = count // len(by_voice) + (turn < count % len(by_voice))
        places = np.linspace(0, len(part) - 1, min(share, len(part))).round().astype(int)
        chosen += [part[place] for place in dict.fromkeys(places.tolist())]
    return chosen


def recordings_of(corpus: Corpus, codec: SnacCodec, layout: TokenLayout, ears: Ears,
                  voices: Collection[str | None]) -> list[Facts]:  # fmt: skip
    """What is heard in some of the corpus's clips of these voices, all alike, after the codec."""
    from tqdm.auto import tqdm

    sets = {True: iter(corpus.validation["input_ids"]), False: iter(corpus.train["input_ids"])}
    known = [clip for clip in corpus.clips if clip.voice in voices]
    wanted = {id(clip) for clip in spread(known, max(RECORDINGS, RECORDINGS_A_VOICE * len(voices)))}
    heard = []
    for index, clip in enumerate(tqdm(corpus.clips, "gates: listening to the recordings", unit="clip", leave=False)):
        ids = np.asarray(next(sets[index in corpus.held_out]))
        if id(clip) in wanted:
            codes, _ = layout.unflatten(ids[ids >= layout.audio_start])
            samples = codec.decode(codes)
            sound = hear(ears, samples)
            heard.append(facts_of(ears, sound, clip.text, clip.voice, samples, corpus.statistics))
    return heard


class Speaker(Protocol):
    """What speaks texts: an `OrpheusInference`, or one in another process."""

    def attempt(self, texts: Sequence[str], voice: str | None, sampling: SamplingOptions) -> list[Speech | NoSpeech]:
        """As `OrpheusInference.attempt`."""
        ...


@dataclass(frozen=True)
class Battery:
    """Texts and limits: `speak` hears what a voice makes of them."""

    lines: Sequence[Line]
    limits: Limits
    ears: Ears
    sampling: SamplingOptions
    batch_size: int = EACH

    def speak(self, tts: Speaker, folder: Path) -> Gates:
        """Speak all texts as users do; the WAVs and gates.json go into `folder`, over what is there."""
        longest_s = max(Watched.of(self.limits.usual, line.text).longest_s for line in self.lines)
        room = min(self.sampling.max_new_tokens, FRAME_SLOTS * math.ceil(longest_s / FRAME_S))
        facts: list[Facts] = []
        for batch in self._batches():
            sampling = replace(self.sampling, max_new_tokens=room, seed=(self.sampling.seed or 0) + len(facts))
            for line, spoken in zip(batch, tts.attempt([b.text for b in batch], batch[0].voice, sampling), strict=True):
                samples = np.zeros(0, np.float32)
                if isinstance(spoken, Speech):
                    spoken.save(folder / f"{line.name}.wav", overwrite=True)
                    samples = spoken.samples
                heard = hear(self.ears, samples)
                facts.append(facts_of(self.ears, heard, line.text, line.voice, samples, self.limits.usual, spoken))
        found = judge(facts, self.limits)
        utterances = [{"name": line.name, **vars(fact)} for line, fact in zip(self._in_order(), facts, strict=True)]
        write_json(folder / "gates.json", {**found.as_dict(), "utterances": utterances})
        return found

    def _in_order(self) -> list[Line]:
        return [line for batch in self._batches() for line in batch]

    def _batches(self) -> list[list[Line]]:
        by_voice: dict[str | None, list[Line]] = defaultdict(list)
        for line in self.lines:
            by_voice[line.voice].append(line)
        return [part[start : start + self.batch_size] for part in by_voice.values()
                for start in range(0, len(part), self.batch_size)]  # fmt: skip


def prepare(corpus: Corpus, codec: SnacCodec, layout: TokenLayout, known: Collection[str], ears: Ears,
            sampling: SamplingOptions) -> Battery:  # fmt: skip
    """The battery for a training on this corpus, with the limits learnt from its recordings."""
    lines = battery_of(corpus, known)
    heard = recordings_of(corpus, codec, layout, ears, {line.voice for line in lines})
    return Battery(lines, learn(heard, corpus.statistics, ears), ears, sampling)
