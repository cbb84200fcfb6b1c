"""The sentences of the embedded tiny model: a template grammar of about 200 words, with emotion tags.

Everything here is deterministic: the same `random.Random` gives the same sentence. Sentences are kept out of
every training set by their own text (`is_held_out`), so no list has to be carried around.
"""

from __future__ import annotations

import hashlib
import random
import re
from functools import cache

TAGS = ("<laughs>", "<sighs>", "<gasps>", "<giggles>")
TAG_PATTERN = re.compile(r"<[a-z]+>")

_WORDS = {
    "name": "Anna Peter Maria David Sarah Michael Helen Robert Julia Thomas",
    "city": "London Paris Berlin Boston Chicago Dublin Madrid Toronto Sydney Moscow",
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "month": "January February March April June July August September October November December",
    "weather": "sunny cloudy windy rainy cold warm dry stormy",
    "hour": "one two three four five six seven eight nine ten eleven twelve",
    "minutes": "ten fifteen twenty thirty forty fifty",
    "count": "two three four five six seven eight nine ten twelve twenty",
    "part": "morning afternoon evening",
    "room": "kitchen bedroom garden office garage bathroom",
    "device": "light heater fan radio television camera",
    "food": "apples oranges coffee bread cheese chicken potatoes chocolate bananas sugar",
    "colour": "red green blue yellow black white orange",
    "animal": "dog cat horse rabbit tiger monkey elephant",
    "good": "happy funny clever lovely beautiful wonderful",
    "bad": "terrible horrible strange awful",
    "thing": "story idea surprise song picture movie",
}
SLOTS: dict[str, list[str]] = {name: words.split() for name, words in _WORDS.items()} | {
    "when": ["today", "tomorrow", "tonight", "this morning", "this afternoon", "this evening", "on {day}"],
    "greeting": ["Hey there", "Hello", "Hello everyone", "Good {part}"],
    "self": ["Elise", "Elise", "{name}"],
    "machine": ["speech generation model", "voice generation model", "little speech model", "talking machine"],
    "ability": [
        "sound like a person",
        "speak like a person",
        "tell you a story",
        "read a book for you",
        "sing a song for you",
    ],
}

# A comma is a place where a tag may stand, as are the start and the end of the sentence.
TEMPLATES: list[tuple[int, str]] = [
    (6, "{greeting} my name is {self}, and I'm a {machine} that can {ability}."),
    (3, "My name is {self}, and I can {ability}."),
    (3, "{greeting} {name}, how are you {when}?"),
    (3, "{greeting} {name}, and welcome to {city}."),
    (4, "The weather in {city} will be {weather}, and {weather} on {day}."),
    (4, "It will be very {weather} in {city} {when}."),
    (4, "The train to {city} leaves at {hour} {minutes}, in the {part}."),
    (3, "It is {hour} {minutes}, and the train to {city} is late."),
    (4, "Please turn on the {device}, in the {room}."),
    (4, "Please turn off the {device} in the {room}, and close the door."),
    (3, "Please open the {room} window, for {name}."),
    (4, "I would like {count} {food}, and some {food}."),
    (4, "We need more {food}, and {count} {food} for {name}."),
    (4, "{name} has a {colour} {animal}, and a {good} {animal}."),
    (4, "That {colour} {animal} is so {good}, I want to take it home."),
    (4, "Oh no, the {animal} is in the {room}."),
    (4, "Oh no, I forgot the {food} in the {room}."),
    (4, "We will meet {name} in {city}, on {day} {part}."),
    (4, "{name} will come home, on the {day} before {month}."),
    (3, "What a {good} {thing}, thank you {name}."),
    (3, "What a {bad} {thing}, I am so tired {when}."),
    (3, "I can't believe it, {name} found the {colour} {animal}."),
    (3, "I missed you {name}, and I am so happy to see you {when}."),
    (3, "That is so {good}, please tell me the {thing} about the {animal}."),
    (3, "Can you tell {name}, that it is {weather} in {month}?"),
    (2, "Did you hear that, the {animal} is behind the door."),
    (2, "I have to work {when}, it is a {bad} day."),
]

_WEIGHTS = [w for w, _ in TEMPLATES]
_PATTERNS = [t for _, t in TEMPLATES]
_HELD_OUT_SHARE = 25  # one sentence in 25


def sentence(rng: random.Random) -> str:
    """One random sentence without tags, such as 'Oh no, the dog is in the garden.'"""
    text = rng.choices(_PATTERNS, _WEIGHTS)[0]
    while match := re.search(r"\{(\w+)\}", text):
        text = text[: match.start()] + rng.choice(SLOTS[match[1]]) + text[match.end() :]
    return text


def scrambled(rng: random.Random) -> str:
    """Four to nine words of the grammar in any order: such a sentence can be spoken only by reading it."""
    words = rng.choices(vocabulary(), k=rng.randint(4, 9))
    comma = rng.randrange(1, len(words))
    return " ".join(words[:comma]) + ", " + " ".join(words[comma:]) + "."


def insert_tag(rng: random.Random, text: str, tag: str) -> str:
    """Put `tag` at the start, at the end or after a comma of `text`."""
    places = [0, len(text)] + 2 * [m.end() for m in re.finditer(",", text)]
    at = rng.choice(places)
    return " ".join(f"{text[:at].strip()} {tag} {text[at:].strip()}".split())


def tagged_sentence(rng: random.Random, tag_share: float) -> str:
    """A sentence that holds a tag with probability `tag_share` (one time in eight, two tags)."""
    text = sentence(rng)
    if rng.random() < tag_share:
        text = insert_tag(rng, text, rng.choice(TAGS))
        if rng.random() < 0.125:
            text = insert_tag(rng, text, rng.choice(TAGS))
    return text


def tags_in(text: str) -> list[str]:
    """The tags of `text`, in order."""
    return TAG_PATTERN.findall(text)


def spoken_words(text: str) -> str:
    """Lower-case words without tags and punctuation: what a recogniser should hear."""
    return " ".join(re.sub(r"[^a-z' ]", " ", TAG_PATTERN.sub(" ", text).lower()).split())


def is_held_out(text: str) -> bool:
    """True for the sentences (whatever their tags) that no training set may hold."""
    return hashlib.sha256(spoken_words(text).encode()).digest()[0] % _HELD_OUT_SHARE == 0


def sentences(seed: int, count: int, tag_share: float, held_out: bool = False) -> list[str]:
    """`count` different sentences, all from the training side or all from the held-out side."""
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        text = tagged_sentence(rng, tag_share)
        if is_held_out(text) == held_out:
            found[text] = None
    return list(found)


@cache
def vocabulary() -> list[str]:
    """Every word the grammar can say, sorted."""
    words: set[str] = set()
    for text in _PATTERNS + [choice for choices in SLOTS.values() for choice in choices]:
        words.update(spoken_words(re.sub(r"\{\w+\}", " ", text)).split())
    return sorted(words)
