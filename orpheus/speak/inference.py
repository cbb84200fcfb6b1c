"""OrpheusInference: tagged text in, speech out. `stream()` is the real thing; `generate()` collects it.

text -> prompt ids -> engine (token ids) -> frames of codes -> SNAC -> samples
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from orpheus.codec.snac import SnacCodec
from orpheus.config import Decoding, DraftName, EngineName, ReadingOptions, SamplingOptions, VoiceOptions, as_dict
from orpheus.data.usual import SpeechStatistics
from orpheus.engines.base import Engine
from orpheus.engines.choose import Opened, Wish, is_gguf, look_up, open_voice
from orpheus.errors import UserError
from orpheus.format.pieces import split
from orpheus.format.prompt import Renderer, Voices, check_text, check_voice, split_voice, text_warnings, unknown_words
from orpheus.format.texts import normalise
from orpheus.model.base import preset_of
from orpheus.model.provenance import versions
from orpheus.speak.guard import Watch
from orpheus.speak.names import reserved_paths
from orpheus.speak.reading import Before, Closed, Reading, Spoken
from orpheus.speak.references import Reference, Shown, after, described, read_references, warn_of_left_out
from orpheus.speak.rows import run
from orpheus.speak.speech import Speech
from orpheus.speak.utterance import NoSpeech, Utterance, best, discarded, is_good, retry_seed

log = logging.getLogger(__name__)


class OrpheusInference:
    """A voice: base model, adapter and codec, ready to speak.

    Args:
        adapter: folder of a trained adapter; None speaks with the base model alone.
        base, codec: hub id or folder; None takes what the adapter was trained with. A base may be an exported model:
            a folder, or a .gguf file for llama.cpp; the adapter (None then) and the codec's name are inside.
        engine: "torch", "llamacpp" (for .gguf files), or "auto": by what the base is.
        device: "auto", "cpu", "cuda" or "cuda:1".
        load_in_4bit: True, False, or "auto": 4-bit on a GPU with less than 12 GiB free.
        threads, gpu_layers: for llama.cpp; 0 threads are all cores, -1 layers all layers.
        server, server_model: for "remote": its address, and the name of the model if it serves several.
        draft: "4bit": with "torch" on a CPU, a 4-bit copy of the model guesses what it will say (`SpeculativeEngine`).
    Raises:
        UserError: something is missing or does not fit; the message says what to do.
    """

    def __init__(
        self,
        adapter: str | Path | None = "lora_model",
        base: str | None = None,
        codec: str | None = None,
        engine: EngineName = "auto",
        device: str = "auto",
        load_in_4bit: bool | Literal["auto"] = "auto",
        threads: int = VoiceOptions.threads,
        gpu_layers: int = VoiceOptions.gpu_layers,
        server: str | None = None,
        server_model: str | None = None,
        draft: DraftName = VoiceOptions.draft,
    ) -> None:
        opened = open_voice(Wish(adapter, base, codec, engine, device, load_in_4bit, threads, gpu_layers, server,
                                 server_model, draft))  # fmt: skip
        self._begin(opened, SnacCodec.load(opened.codec, device=opened.device))

    @classmethod
    def of(cls, opened: Opened, codec: SnacCodec) -> OrpheusInference:
        """A voice that is in memory already: a model in training, as it stands."""
        voice = cls.__new__(cls)
        voice._begin(opened, codec)
        return voice

    def _begin(self, opened: Opened, codec: SnacCodec) -> None:
        made, self.codec = opened.made, codec
        if made and made.codec_identity and made.codec_identity != codec.identity:
            what = "adapter" if opened.about.get("adapter") else "model"
            raise UserError(f"the {what} was trained with another codec ({made.codec}, {made.codec_identity}) than "
                            f"'{codec.name}' ({codec.identity}): its codes would be noise")  # fmt: skip
        self.engine: Engine = opened.engine
        self.renderer = Renderer(opened.tokenizer, self.engine.layout)
        self.usual = SpeechStatistics.of(made.speech_statistics if made else None)
        self.has_adapter = opened.adapted
        self.trained_voices = made.voices if made and opened.adapted else ()
        self.trained_tags = tuple(made.tags) if made else ()
        self.seen = made.seen if made else ""
        self.base_voices = opened.base_voices
        self._told = not opened.adapted or made is not None
        self.own_sampling = opened.sampling
        self.words = frozenset(opened.words)  # all that it knows; empty: it may know any
        self.provenance: dict[str, Any] = {
            "model": {
                **opened.about,
                "codec": self.codec.name,
                "codec_identity": self.codec.identity,
                "engine": self.engine.name,
            },
            "versions": versions(),
        }

    def __repr__(self) -> str:
        return f"OrpheusInference({self.provenance['model']['base']}, {self.engine.name})"

    @property
    def voices(self) -> tuple[str, ...]:
        """The voices that this model is known to have; empty: not known."""
        return tuple(dict.fromkeys(self.trained_voices + self.base_voices))

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text ('voice: text' too) that a toy voice does not know, and will babble."""
        return unknown_words([text], self.voices, self.words)

    def drawn_as(self, sampling: SamplingOptions | None = None) -> SamplingOptions:
        """How tokens are drawn if that is asked for: what nobody named is the base's own, else as published."""
        return (sampling or SamplingOptions()).over(self.own_sampling)

    def generate(
        self,
        prompts: str | Sequence[str],
        voice: str | None = None,
        temperature: float = SamplingOptions.temperature,
        top_p: float = SamplingOptions.top_p,
        repetition_penalty: float = SamplingOptions.repetition_penalty,
        max_new_tokens: int = SamplingOptions.max_new_tokens,
        seed: int | None = None,
        output_dir: str | Path | None = None,
        overwrite: bool = False,
        decoding: Decoding = SamplingOptions.decoding,
        guard: bool = ReadingOptions.guard,
        retries: int = ReadingOptions.retries,
        references: Sequence[Reference] = (),
    ) -> list[Speech]:
        """Speak one text or several (as one batch), each to its own end.

        Args:
            prompts: text with tags like <laugh>; 'voice: text' where the voice is a known one.
            voice: for texts without a 'voice: ' of their own. None: the voice the adapter was trained on.
            seed: row i draws from seed + i, so the same call gives the same audio. None: a fresh seed.
            output_dir: also write output_0.wav, output_1.wav, ... there, each as soon as it is finished;
                numbering goes on after the files that exist unless `overwrite`.
            decoding: "strict" draws from the whole vocabulary and stops at an id that is no legal code; "framed" draws
                only from codes that may stand there (`orpheus.config.Decoding` says where the two differ).
            guard: cut runaways, loops and silence. Without a seed, such texts and those with too short speech are
                spoken again, up to `retries` times, and the best is kept. `Speech.guard` says what was found and done.
            references: recordings (files, or float32 [n] at 24 kHz), each with its text, of the voice to speak in:
                for pretrained bases. The last ones that fit into the context are shown to the model.
        Returns:
            One Speech per prompt, in order.
        Raises:
            UserError: bad text, voice, option or reference; NoSpeech if a text gave not a frame (the others are kept).
        """
        sampling = self.drawn_as(
            SamplingOptions(temperature, top_p, repetition_penalty, max_new_tokens, seed, decoding)
        )
        reading = ReadingOptions(guard=guard, retries=retries)
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if output_dir is None:
            rows = self._rows(texts, voice, sampling, guard, references)
            speeches = [item for item in self._speak(rows, sampling, len(rows), reading)]
        else:
            spoken = self.speak_to_files(texts, output_dir, voice, sampling, len(texts), overwrite, reading,
                                        references)  # fmt: skip
            speeches = [speech for speech, _ in spoken]
        return sorted(speeches, key=lambda speech: speech.index)

    def speak_to_files(
        self,
        texts: Sequence[str],
        folder: str | Path,
        voice: str | None = None,
        sampling: SamplingOptions | None = None,
        batch_size: int = 8,
        overwrite: bool = False,
        reading: ReadingOptions | None = None,
        references: Sequence[Reference] = (),
    ) -> Iterator[tuple[Speech, Path]]:
        """Speak texts in batches, writing output_<k>.wav for each as soon as it is finished (not always in order).

        All texts are checked before the first is spoken; of `reading` the guard matters here. Raises as `generate`
        does, NoSpeech at the very end.
        """
        sampling, reading = self.drawn_as(sampling), reading or ReadingOptions()
        rows = self._rows(texts, voice, sampling, reading.guard, references)
        with reserved_paths(Path(folder), len(rows), overwrite) as paths:
            for speech in self._speak(rows, sampling, batch_size, reading):
                yield speech, speech.save(paths[speech.index], overwrite=overwrite)

    def stream(
        self,
        prompt: str,
        voice: str | None = None,
        temperature: float = SamplingOptions.temperature,
        top_p: float = SamplingOptions.top_p,
        repetition_penalty: float = SamplingOptions.repetition_penalty,
        max_new_tokens: int = SamplingOptions.max_new_tokens,
        seed: int | None = None,
        decoding: Decoding = SamplingOptions.decoding,
        guard: bool = ReadingOptions.guard,
        references: Sequence[Reference] = (),
    ) -> Iterator[np.ndarray]:
        """Speak one text; yields float32 chunks [n] as soon as they are final.

        Concatenated they are `generate()`'s samples for the same seed. The first chunk comes after three
        frames (0.26 s of speech, 21 tokens). Errors are raised as `generate` does, at the first `next()`.
        """
        sampling = SamplingOptions(temperature, top_p, repetition_penalty, max_new_tokens, seed, decoding)
        yield from self.read(prompt, voice, sampling, ReadingOptions(guard=guard), whole=True,
                             references=references)  # fmt: skip

    def read(
        self,
        text: str,
        voice: str | None = None,
        sampling: SamplingOptions | None = None,
        reading: ReadingOptions | None = None,
        *,
        whole: bool = False,
        collected: bool = False,
        warn: bool = True,
        references: Sequence[Reference] = (),
    ) -> Reading:
        """Speak a text of any length, piece by piece, in constant memory: an iterator of float32 chunks [n].

        A text of one piece gives the samples of `generate` for the same seed; piece i draws from seed + i. Pieces are
        no longer than the texts that the voice was trained on, where that is known; `whole`: it is not split at all.
        `collected`: chunks are whole pieces, so that the guard can draw any again. `warn`: of odd tags, to the log.
        Any number of readings may go on at the same time, in threads of their own, where the engine's `stream` may.

        Raises UserError at once: bad text, voice or option. While it speaks: NoSpeech if a piece gave not one frame.
        """
        sampling, reading = self.drawn_as(sampling), reading or ReadingOptions()
        shown = read_references(references, self.codec)
        chosen, clean = self._voice_of(text, voice, shown)
        if warn:
            self._warn_of([text], {chosen})
        _, rest = split_voice(normalise(text), self.voices)  # with the ends of its paragraphs
        limit = min(reading.piece_chars, self.usual.longest_text or reading.piece_chars)

        pieces = [clean] if whole else split(rest, limit)
        longest = self.renderer.prompt(max(pieces, key=len), chosen)
        warn_of_left_out(after(self.renderer, self.engine, shown, longest, chosen, sampling)[1], shown)

        def speak(piece: str, seed: int, before: Before | None, closed: Closed) -> Spoken:
            if before:
                prompt = self.renderer.continued(before.text, before.codes, piece, chosen)
            else:
                prompt = self.renderer.prompt(piece, chosen)
            prompt, _ = after(self.renderer, self.engine, shown, prompt, chosen, sampling)
            row = self._utterance(0, piece, chosen, seed, reading.guard, prompt)
            return self._stream([row], sampling, closed)

        def fits(piece: str, before: Before) -> bool:
            length = len(self.renderer.continued(before.text, before.codes, piece, chosen)) + sampling.max_new_tokens
            return length <= self.engine.context_length

        drawn = sampling.seed is None
        seed = secrets.randbelow(2**31) if sampling.seed is None else sampling.seed
        retries = reading.retries if reading.guard and drawn else 0
        about = {"sampling": as_dict(sampling), "reading": as_dict(reading), **self.provenance, **described(shown)}
        return Reading(pieces, chosen, seed, speak, retries=retries,
                       collected=collected, carry=fits if reading.carry else None, silent_db=self.usual.silent_db,
                       provenance=about)  # fmt: skip

    def attempt(self, texts: Sequence[str], voice: str | None = None, sampling: SamplingOptions | None = None,
                references: Sequence[Reference] = ()) -> list[Speech | NoSpeech]:  # fmt: skip
        """Speak texts as one batch; for each, in order, its Speech or the NoSpeech that says why there is none.

        For measuring a model: what `generate` raises is part of the result here. UserError: bad text, voice
        or reference.
        """
        sampling = self.drawn_as(sampling)
        rows = self._rows(texts, voice, sampling, references=references)
        ended = [item for item in self._stream(rows, sampling) if not isinstance(item, np.ndarray)]
        return sorted(ended, key=lambda item: item.index)

    def _speak(self, rows: Sequence[Utterance], sampling: SamplingOptions, batch_size: int,
               reading: ReadingOptions) -> Iterator[Speech]:  # fmt: skip
        """Each row's Speech as it is finished; NoSpeech at the end if there were silent ones."""
        silent: list[str] = []
        retries = reading.retries if reading.guard and sampling.seed is None else 0
        for start in range(0, len(rows), batch_size):
            for item in self._attempts(rows[start : start + batch_size], sampling, retries):
                if isinstance(item, Speech):
                    yield item
                else:
                    silent.append(str(item))
        if silent:
            raise NoSpeech("; ".join(silent))

    def _attempts(self, rows: Sequence[Utterance], sampling: SamplingOptions,
                  retries: int) -> Iterator[Speech | NoSpeech]:  # fmt: skip
        """What came of each row; the guard's bad ones are spoken again, up to `retries` times."""
        drawn: dict[int, list[Speech | NoSpeech]] = {row.index: [] for row in rows}
        for attempt in range(retries + 1):
            for item in self._stream(rows, sampling):
                if not isinstance(item, np.ndarray):
                    drawn[item.index].append(item)
                    if is_good(item) or attempt == retries:
                        yield _chosen(drawn.pop(item.index))
            rows = [self._utterance(row.index, row.text, row.voice, retry_seed(row.seed), True, row.prompt)
                    for row in rows if row.index in drawn]  # fmt: skip
            if not rows:
                return

    def _rows(self, texts: Sequence[str], voice: str | None, sampling: SamplingOptions,
              guard: bool = False, references: Sequence[Reference] = ()) -> list[Utterance]:  # fmt: skip
        if not texts:
            raise UserError("there is nothing to speak: give at least one text")
        seed = secrets.randbelow(2**31) if sampling.seed is None else sampling.seed
        shown = read_references(references, self.codec)
        rows, left_out = [], 0
        for i, text in enumerate(texts):
            chosen, rest = self._voice_of(text, voice, shown)
            prompt = self.renderer.prompt(rest, chosen)
            prompt, without = after(self.renderer, self.engine, shown, prompt, chosen, sampling)
            rows.append(self._utterance(i, rest, chosen, seed + i, guard, prompt, described(shown[without:])))
            left_out = max(left_out, without)
        warn_of_left_out(left_out, shown)
        self._warn_of(texts, {row.voice for row in rows})
        return rows

    def _utterance(self, index: int, text: str, voice: str | None, seed: int, guard: bool, prompt: list[int],
                   more: dict[str, Any] | None = None) -> Utterance:  # fmt: skip
        return Utterance(index, text, voice, seed, prompt=prompt, layout=self.engine.layout,
                         decoder=self.codec.streaming(seed=seed), provenance={**self.provenance, **(more or {})},
                         watch=Watch(self.usual, text) if guard else None)  # fmt: skip

    def _voice_of(self, text: str, voice: str | None, shown: Sequence[Shown] = ()) -> tuple[str | None, str]:
        """Who speaks a text, and the checked text without its 'voice: '. An example needs no name beside it."""
        voice = "" if voice is None and shown and not self.has_adapter else voice
        known = Voices(self.trained_voices, self.base_voices, self.has_adapter, self._told)
        return known.choose(text, voice, *self.trained_tags[:1])

    def _warn_of(self, texts: Sequence[str], voices: set[str | None]) -> None:
        for warning in text_warnings(texts, self.voices, self.words):
            log.warning("%s", warning)
        for name in sorted({voice for voice in voices if voice} - set(self.voices)):
            log.warning("voice '%s' was not in the training data: the model may ignore it", name)

    def _stream(self, rows: Sequence[Utterance], sampling: SamplingOptions, closed: Closed = lambda: False) -> Spoken:
        return run(self.engine, self.codec, rows, sampling, closed)


def _chosen(attempts: Sequence[Speech | NoSpeech]) -> Speech | NoSpeech:
    """The best attempt, which tells of the others."""
    chosen = best(attempts)
    if isinstance(chosen, NoSpeech):
        return chosen
    return replace(chosen, guard=(*chosen.guard, *discarded(chosen, attempts)))


def load_voice(options: VoiceOptions) -> OrpheusInference:
    """The voice that the options describe; a log line names what speaks where that is no adapter."""
    wish = wish_of(options)
    if wish.adapter is None:
        log.info("base %s, codec %s, no adapter", wish.base, wish.codec or "of the base")
    return OrpheusInference(**vars(wish))


def wish_of(options: VoiceOptions) -> Wish:
    """What the options ask for, with the names that the preset fills in where there is no adapter."""
    adapter, base, codec = options.adapter, options.base, options.codec
    if is_gguf(base) and adapter == VoiceOptions.adapter:
        adapter = None  # it speaks for itself
    elif adapter is None and base is None:
        preset = preset_of(options.preset)
        base, codec = preset.base, codec or preset.codec
    in_4bit: dict[str, Any] = {"auto": "auto", "yes": True, "no": False}
    return Wish(adapter, base, codec, options.engine, options.device, in_4bit[options.load_in_4bit], options.threads,
                options.gpu_layers, options.server, options.server_model, options.draft)  # fmt: skip


def check_speaking(options: VoiceOptions, texts: Sequence[str] = (), voice: str | None = None) -> Voices | None:
    """The voices of the model that the options describe, by its small files; None: a .gguf file says them inside.

    UserError as loading and speaking would: a file that is missing or does not fit, a bad text, an unknown voice.
    """
    for text in texts:
        check_text(text)
    check_voice(voice, ())
    named = look_up(wish_of(options))
    voices = named.voices if named else None
    for text in texts:
        _ = voices and voices.choose(text, voice)
    return voices
