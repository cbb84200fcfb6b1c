"""Text in, token ids out: the one renderer for prompts and training examples, and the checks on voices and tags.

    prompt   start_of_human BOS text end_of_text end_of_human start_of_ai start_of_speech
    example  the prompt, then codes end_of_speech end_of_ai

A prompt is a strict prefix of the example for the same text, so the model is asked at inference exactly what
it was taught. Sources: Unsloth's Orpheus notebook (`create_input_ids`), canopyai/Orpheus-TTS
(`engine_class.py::_format_prompt`), and its issue #76 on the single BOS.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from orpheus.errors import UserError
from orpheus.format.texts import around, check_decoded, normalise
from orpheus.format.tokens import CUSTOM_TOKEN, Codes, TokenLayout

IGNORE = -100  # the label that PyTorch's cross entropy leaves out

TAGS_BY_LANGUAGE: dict[str, tuple[str, ...]] = {
    "en": ("laugh", "chuckle", "sigh", "cough", "sniffle", "groan", "yawn", "gasp"),
    "en (Elise)": ("laughs", "sighs", "giggles", "chuckles", "gasps", "whispers", "coughs"),
    "en (mood)": ("whisper", "happy", "sad", "angry"),  # only some models know these
    "fr": ("chuckle", "cough", "gasp", "groan", "laugh", "sigh", "sniffle", "whimper", "yawn"),
    "de": ("chuckle", "cough", "gasp", "groan", "laugh", "sigh", "sniffle", "yawn"),
    "es": ("groan", "chuckle", "gasp", "resoplido", "laugh", "yawn", "cough"),
    "it": ("sigh", "laugh", "cough", "sniffle", "groan", "yawn", "gemito", "gasp"),
    "ko": ("한숨", "헐", "헛기침", "훌쩍", "하품", "낄낄", "신음", "작은 웃음", "기침", "으르렁"),
    "zh": ("嬉笑", "轻笑", "呻吟", "大笑", "咳嗽", "抽鼻子", "咳"),
}
"""Known tags (Canopy's README and multilingual release, the Elise data set). Any other `<word>` is allowed too."""

KNOWN_TAGS = tuple(dict.fromkeys(tag for tags in TAGS_BY_LANGUAGE.values() for tag in tags))

_TAG = re.compile(r"<([^<>]*)>")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_TAG_NAME = re.compile(r"[^\W\d_][\w' -]*", re.UNICODE)  # a word, or a few words, in any script
_CUSTOM_TOKEN = re.compile(CUSTOM_TOKEN.format(r"\d+"))
_VOICE_PREFIX = re.compile(r"^\s*([^\s:<>]+)\s*:\s+(?=\S)")
_LIKE_A_VOICE = re.compile(r"^\s*([^:<>]{1,40}?)\s*[:：](?=\s*\S)")
# What people write for <laughs>; the second of each pair says whether all such words are suspect, or those like a tag.
_BRACKETS = (
    (re.compile(r"\[([^\[\]]{1,60})\]"), True), (re.compile(r"\{([^{}]{1,60})\}"), True),
    (re.compile(r"(?<!\w)(\*{1,2})(?=\S)([^*\n]{1,60}?)(?<=\S)\1(?!\w)"), True),
    (re.compile(r"(?<!\w)(_{1,2})(?=\S)([^_\n]{1,60}?)(?<=\S)\1(?!\w)"), False),
    (re.compile(r"(?<!\w)(~)(?=\S)([^~\n]{1,60}?)(?<=\S)\1(?!\w)"), False),
    (re.compile(r"\(([^()]{1,60})\)"), False), (re.compile(r"（([^（）]{1,60})）"), False),
    (re.compile(r"【([^【】]{1,60})】"), True), (re.compile(r"［([^［］]{1,60})］"), True),
    (re.compile(r"＜([^＜＞]{1,60})＞"), True), (re.compile(r"[〈《]([^〈〉《》]{1,60})[〉》]"), False),
    (re.compile(r"‹([^‹›]{1,60})›"), False), (re.compile(r"(?<!\w)(:)([a-z_]{3,20})\1(?!\w)"), False),
)  # fmt: skip
NOT_SPOKEN = frozenset({"unk", "pad", "s", "eos", "bos", "mask", "cls", "sep", "think", "thinking", "reasoning",
    "tool_call", "system", "user", "assistant"})  # fmt: skip
"""Marks of language models' own. As tags they mean that the text is not what is to be said."""
HTML_TAGS = frozenset({"a", "b", "i", "u", "em", "strong", "span", "div", "font", "small", "big", "sub", "sup",
    "code", "pre", "blockquote", "img", "li", "ul", "ol", "tt"})  # fmt: skip
EMPTY_CELLS = frozenset({"nan", "NaN", "NAN", "null", "NULL", "Null", "None", "NONE", "N/A", "n/a", "#N/A",
    "NA", "<NA>", "NaT", "nil", "undefined", "#REF!", "#VALUE!", "#NAME?", "#DIV/0!"})  # fmt: skip
"""What programs write into a table where there is no text."""


def find_tags(text: str) -> list[str]:
    """The names of the tags in `text`, in order: 'oh <sighs> well' -> ['sighs']."""
    return _TAG.findall(text)


def strip_tags(text: str) -> str:
    """The text without its tags, with single spaces."""
    return " ".join(_TAG.sub(" ", text).split())


def _stem(word: str) -> str:
    return re.sub(r"(ing|ed|es|er|s|e)$", "", word)


def suggest_tag(tag: str, known: Iterable[str] = KNOWN_TAGS) -> str | None:
    """The known tag that `tag` was probably meant to be ('laughing' -> 'laughs'), or None if it is known or far off."""
    names = list(known)
    if tag in names:
        return None
    lowered = tag.strip().lower()
    if lowered in names:
        return lowered
    stem = _stem(lowered)
    same_stem = [name for name in names if len(stem) >= 3 and _stem(name) == stem]
    # Of 'laugh' and 'laughs' prefer the form that data sets write as a verb.
    close = sorted(same_stem, key=len, reverse=True) or difflib.get_close_matches(lowered, names, n=1, cutoff=0.75)
    return close[0] if close else None


def tag_census(texts: Iterable[str]) -> Counter[str]:
    """How often each tag occurs over a corpus."""
    return Counter(tag for text in texts for tag in find_tags(text))


def tag_warnings(texts: Iterable[str], known: Iterable[str] = KNOWN_TAGS) -> list[str]:
    """One line for each tag that looks like a slip of a known one, for HTML, and for what stands in other brackets.

    Custom tags that resemble nothing pass, and so does what stands in round brackets and is like no tag.
    """
    names, texts = list(known), list(texts)
    warnings = []
    for tag, count in sorted(tag_census(texts).items()):
        better = suggest_tag(tag, names)
        if better is not None:
            warnings.append(f"<{tag}> ({count} times) is not a known tag: did you mean <{better}>?")
        elif tag.lower() in HTML_TAGS and tag not in names:
            warnings.append(f"<{tag}> ({count} times) looks like HTML, which is not spoken: leave it out")
    directions = Counter(found for text in texts for found in _directions(text, names))
    for (written, better), count in sorted(directions.items(), key=str):
        advice = f"did you mean <{better}>?" if better else "write what is said, or a tag like <laugh>"
        warnings.append(f"{written} ({count} times) is read out as words: {advice}")
    return warnings


def _directions(text: str, known: Sequence[str]) -> Iterable[tuple[str, str | None]]:
    """What stands in brackets other than < and > and seems to be meant as a tag, each with the tag it is like."""
    text = _TAG.sub(" ", text)
    for pattern, suspect in _BRACKETS:
        for match in pattern.finditer(text):
            better = _meant(match.groups()[-1], known)
            if better or (suspect and any(c.isalpha() for c in match.groups()[-1])):
                yield match.group(), better


def _meant(words: str, known: Sequence[str]) -> str | None:
    """The known tag that a stage direction names: itself, one of its few words, or (Chinese, ...) a part of it."""
    clean = " ".join(words.strip(" .,!?…").lower().split())
    parts = clean.split()
    for part in [clean, *parts] if len(parts) <= 4 else []:
        found = part if part in known else suggest_tag(part, known) if len(part) > 3 else None
        if found and (len(parts) == 1 or _stem(part) == _stem(found)):  # of a phrase's words only what is sure
            return found
    inside = [tag for tag in known if not clean.isascii() and clean and clean in tag]
    return inside[0] if inside else None


def check_text(text: Any, tag: str = "laugh") -> str:
    """The text as it is trained on and spoken: normalised, with single spaces.

    UserError for no text, nothing speakable, a malformed tag, or half a character. It quotes the place.
    tag: one to name as an example, which the voice knows.
    """
    if not isinstance(text, str):
        raise UserError(f"the text is {type(text).__name__}, expected a string")
    check_decoded(text)
    clean = " ".join(normalise(text).split())
    if not clean:
        raise UserError("the text is empty: give at least one word to speak")
    if "\ufffd" in clean:
        place = around(clean, clean.index("\ufffd"))
        raise UserError(f"the text {place} holds replacement characters: it was read in the wrong encoding, save it "
                        "as UTF-8")  # fmt: skip
    for match in _TAG.finditer(clean):
        _check_tag(match.group(1), around(clean, match.start()), tag)
    rest = _TAG.sub(lambda match: " " * len(match.group()), clean)  # of the same length: places stay
    stray = re.search("[<>]", rest)
    if stray:
        place = around(clean, stray.start())
        raise UserError(f"a tag in {place} is not closed: write it as <{tag}>, or leave out '<' and '>'")
    if not any(c.isalnum() for c in clean):
        raise UserError(f"the text {clean[:40]!r} has no letter, digit or tag to speak")
    return clean


def _check_tag(tag: str, place: str, example: str) -> None:
    if _CUSTOM_TOKEN.fullmatch(f"<{tag}>"):
        raise UserError(f"'<{tag}>' in {place} is one of the model's control tokens: remove it from the text")
    if tag.lower() in NOT_SPOKEN:
        raise UserError(f"'<{tag}>' in {place} is a language model's own mark, nothing to speak: remove it from the "
                        "text")  # fmt: skip
    if not _TAG_NAME.fullmatch(tag):
        raise UserError(f"'<{tag}>' in {place} is not a tag: write a word between < and >, like <{example}>")


def split_voice(text: str, voices: Sequence[str]) -> tuple[str | None, str]:
    """Take a leading 'voice: ' off the text if it names a known voice: 'tara: Hi' -> ('tara', 'Hi')."""
    match = _VOICE_PREFIX.match(text)
    if match and match.group(1) in voices:
        return match.group(1), text[match.end() :]
    return None, text


def voice_hints(texts: Iterable[str], voices: Sequence[str]) -> list[str]:
    """A line for each text that begins almost as 'voice: ' does ('Tara: ', 'tara:hello'): it would be read aloud."""
    hints: dict[str, None] = {}
    for text in texts:
        match = _LIKE_A_VOICE.match(text)
        if not match or split_voice(text, voices)[0]:
            continue
        meant = next((voice for voice in voices if voice.casefold() == match.group(1).casefold()), None)
        if meant:
            hints[f"{text[: match.end()]!r} is read aloud: to choose the voice, write '{meant}: text'"] = None
    return list(hints)


def unknown_words(texts: Iterable[str], voices: Sequence[str], known: Collection[str]) -> list[str]:
    """The words, in lower case and each once, that are not among the `known` ones; [] if `known` is empty.

    Tags are no words, nor is 'voice: ' before a text.
    """
    said = (normalise(strip_tags(split_voice(text, voices)[1])).lower() for text in texts if known)
    return list(dict.fromkeys(word for text in said for word in _WORD.findall(text) if word not in known))


def text_warnings(texts: Sequence[str], voices: Sequence[str], known: Collection[str]) -> list[str]:
    """A line for all that looks odd in texts to be spoken: tags, voices, and words that a toy voice does not know."""
    unknown = unknown_words(texts, voices, known)
    said = [f"the embedded voice does not know: {', '.join(unknown)}"] if unknown else []
    return [*tag_warnings(texts), *voice_hints(texts, voices), *said]


def check_voice(voice: str | None, voices: Sequence[str]) -> str | None:
    """The voice if it may be used. UserError for an unknown one where the voices are known (`voices` not empty)."""
    if voice is None or voice == "":
        return None
    voice = voice if voice in voices else " ".join(normalise(voice).split())  # names are written as texts are
    if voices and voice not in voices:
        close = difflib.get_close_matches(voice, voices, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise UserError(f"unknown voice '{voice}': this model knows {', '.join(voices)}{hint}")
    check_decoded(voice, "the voice")
    if ":" in voice or "<" in voice or ">" in voice or not voice.strip():
        raise UserError(f"'{voice}' is not a voice name: use a word without ':', '<' or '>'")
    return voice


@dataclass(frozen=True)
class Voices:
    """The voices that a model is known to have: those its adapter was trained on, and its base's. Empty: not known."""

    trained: tuple[str, ...]
    base: tuple[str, ...]
    adapted: bool  # an adapter is at work
    told: bool = True  # the adapter says what it was trained on

    @property
    def known(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(dict.fromkeys(self.trained + self.base))

    def choose(self, text: str, voice: str | None, tag: str = "laugh") -> tuple[str | None, str]:
        """Who speaks a text, and the checked text without its 'voice: '. UserError: bad text or voice, or no choice."""
        named, rest = split_voice(check_text(text, tag), self.known)
        chosen = named or (self.default() if voice is None else voice)
        # A base whose own voices are not known may well know more than the adapter was trained on; so may an adapter
        # that does not say what it was trained on.
        return check_voice(chosen, self.known if self.base and self.told else ()), rest

    def default(self) -> str | None:
        """The one voice the adapter was trained on; None (plain text) for a single speaker without a name."""
        voices = self.trained if self.adapted else self.base
        if len(voices) > 1:
            raise UserError(
                f"this model knows several voices: choose one of {', '.join(voices)} (--voice, or 'voice: text')"
            )
        return voices[0] if voices else None


def format_text(text: str, voice: str | None = None) -> str:
    """What the tokenizer sees: 'text' for a single speaker, 'voice: text' for several."""
    clean = check_text(text)
    return f"{voice}: {clean}" if voice else clean


@dataclass(frozen=True)
class Example:
    """One training sequence; `labels` equal `input_ids` where the loss is taken and IGNORE elsewhere. Both [L]."""

    input_ids: list[int]
    labels: list[int]


class Renderer:
    """Turns text (and codes) into token ids, the same way for inference and training."""

    def __init__(self, tokenizer: Any, layout: TokenLayout, train_on: Literal["speech", "all"] = "speech") -> None:
        self.tokenizer = tokenizer
        self.layout = layout
        self.train_on = train_on

    def text_ids(self, text: str, voice: str | None = None) -> list[int]:
        """BOS and the text's ids. Exactly one BOS, whether or not the tokenizer adds one itself."""
        ids = self.tokenizer(format_text(text, voice), add_special_tokens=False)["input_ids"]
        special = sorted({int(i) for i in ids if self._is_special(int(i))})
        if special:
            names = ", ".join(self.tokenizer.convert_ids_to_tokens(special))
            place = around(text, max(text.find(str(self.tokenizer.convert_ids_to_tokens(special[:1])[0])), 0))
            raise UserError(f"the text {place} contains the control token {names}: remove it from the text")
        return [self.layout.bos, *map(int, ids)]

    def _is_special(self, token_id: int) -> bool:
        lo = self.layout
        return token_id in (lo.bos, lo.end_of_text) or lo.custom_start <= token_id < lo.audio_end

    def prompt(self, text: str, voice: str | None = None) -> list[int]:
        """The ids up to and including start_of_speech: what the model continues with codes."""
        lo = self.layout
        return [lo.start_of_human, *self.text_ids(text, voice), lo.end_of_text, lo.end_of_human,
                lo.start_of_ai, lo.start_of_speech]  # fmt: skip

    def continued(self, before: str, codes: Codes, text: str, voice: str | None = None) -> list[int]:
        """The ids for going on with `text` where `before` was spoken already, as `codes`: an example under way."""
        return [*self.prompt(f"{before} {text}", voice), *self.layout.flatten(codes).tolist()]

    def by_example(
        self, shown: Iterable[tuple[str, Codes]], prompt: Sequence[int], voice: str | None = None
    ) -> list[int]:
        """The ids for speaking as somebody else: whole examples, texts with their codes, and then a prompt.

        So Canopy asks its pretrained model for a voice (canopyai/Orpheus-TTS, commit 4028c71,
        colabs/Orpheus_0_1_Pretrain_Inference.ipynb: `zeroprompt_input_ids`, then `second_input_ids`).
        """
        before = (self.example(text, codes, voice).input_ids for text, codes in shown)
        return [*chain.from_iterable(before), *prompt]

    def example(self, text: str, codes: Codes, voice: str | None = None) -> Example:
        """A whole training sequence with its label mask.

        `train_on="speech"` puts codes, end_of_speech and end_of_ai in the loss; "all" the prompt too.
        """
        prompt = self.prompt(text, voice)
        speech = [*self.layout.flatten(codes).tolist(), self.layout.end_of_speech, self.layout.end_of_ai]
        head = prompt if self.train_on == "all" else [IGNORE] * len(prompt)
        return Example(prompt + speech, head + speech)
