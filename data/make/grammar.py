"""The sentences of the embedded voice: a template grammar over the words of words.txt, with emotion tags.

Everything here is deterministic: the same `random.Random` gives the same sentence. Sentences are kept out of
every training set by their own text (`is_held_out`), so no list has to be carried around.
"""

from __future__ import annotations

import hashlib
import random
import re
from functools import cache
from pathlib import Path

TAGS = ("<laughs>", "<sighs>", "<gasps>", "<giggles>")
TAG_PATTERN = re.compile(r"<[a-z]+>")

_WORDS = {
    "name": "Anna Peter Maria David Sarah Michael Helen Robert Julia Thomas Tara Leo Dan Emma Tom Kate John "
    "Mary Lucy Adam",
    "city": "London Paris Berlin Boston Chicago Dublin Madrid Toronto Sydney Moscow Rome Tokyo Washington",
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "month": "January February March April June July August September October November December",
    "weather": "sunny cloudy windy rainy cold warm dry stormy",
    "hour": "one two three four five six seven eight nine ten eleven twelve",
    "minutes": "ten fifteen twenty thirty forty fifty",
    "count": "two three four five six seven eight nine ten twelve twenty",
    "part": "morning afternoon evening",
    "room": "kitchen bedroom garden office garage bathroom",
    "device": "light heater fan radio television camera",
    "food": "apples oranges coffee bread cheese chicken potatoes chocolate bananas sugar eggs",
    "colour": "red green blue yellow black white orange",
    "animal": "dog cat horse rabbit tiger monkey elephant",
    "good": "happy funny clever lovely beautiful wonderful",
    "bad": "terrible horrible strange awful",
    "thing": "story idea surprise song picture movie book game party day",
    "drink": "coffee tea water milk juice wine",
    "dish": "pizza pasta soup salad fish chicken cake sandwich bread",
    "place": "park station museum library restaurant beach school office market hospital hotel bank",
    "person": "mother father brother sister friend teacher doctor neighbor husband wife son daughter",
    "verb": "read write sing dance swim cook drive walk run sleep play work eat talk listen learn",
    "feeling": "happy sad tired hungry thirsty angry ready busy afraid proud sorry",
    "trait": "big small old new long short good nice great strange cold hot quiet loud slow quick",
    "object": "book phone computer door window table chair camera car bike key bag box letter picture umbrella clock "
    "guitar",
    "sport": "football tennis basketball guitar piano games music",
    "number": "two three four five six seven eight nine ten twelve fifteen twenty thirty fifty hundred",
    "adverb": "really very so quite too",
    "who": "I you we they",
    "pet": "dogs cats birds horses rabbits tigers monkeys elephants",
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

PROPER = {
    word.lower(): word
    for word in (
        f"{_WORDS['name']} {_WORDS['city']} {_WORDS['day']} {_WORDS['month']} Elise Zoe Jess Mia Alice Paul James Lisa "
        "Mark Laura Max Eva Sam Ben Jack Anne George York England America Germany France Italy Spain Canada Australia "
        "Europe European African American English French German British China India Christmas I I'm I'll I've I'd"
    ).split()
    if word not in ("May", "March", "Mark")
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
    (3, "Good {part}, how are you {when}?"),
    (3, "Hello {name}, it is nice to meet you."),
    (3, "I would like a cup of {drink}, please."),
    (3, "Can I have a {trait} {object}, please?"),
    (3, "{who} like {dish}, and {who} like {drink}."),
    (3, "Do you like {dish}, or do you like {dish}?"),
    (3, "Where is the {place}, and how far is it?"),
    (3, "Where did you put my {object}?"),
    (3, "My {person} and my {person} live in {city}."),
    (3, "I think the {place} is {adverb} {trait}."),
    (3, "{who} want to {verb} and {verb}, but not {when}."),
    (3, "What time does the {place} open {when}?"),
    (3, "The {object} is on the {object}, in the {room}."),
    (3, "I am {adverb} {feeling}, because my {person} is here."),
    (3, "My {person} is {adverb} {feeling}, let's go home."),
    (3, "Thank you for the {trait} {object}, {name}."),
    (3, "There are {number} people in the {place}."),
    (3, "It costs {number} dollars, and that is {adverb} good."),
    (3, "{name} can play {sport}, but {name} can't."),
    (3, "Let's go to the {place}, and {verb} with {name}."),
    (3, "I don't know what you mean, please say it again."),
    (3, "Could you help me find the {place}, please?"),
    (3, "Have you seen my {colour} {object}?"),
    (3, "Yes, I would love to {verb} with you {when}."),
    (3, "No, thank you, I have to {verb} now."),
    (3, "See you on {day}, my {good} friend."),
    (3, "Happy birthday {name}, I hope you have a {good} day."),
    (3, "When will the {trait} bus leave for {city}?"),
    (3, "She said that her {person} has {number} {pet}."),
    (3, "He never eats {dish}, but he will eat {dish}."),
    (3, "They walked to the {place} in the rain {when}."),
    (3, "This is a test of the little voice, can you hear it?"),
]

_WEIGHTS = [w for w, _ in TEMPLATES]
_PATTERNS = [t for _, t in TEMPLATES]
_HELD_OUT_SHARE = 25  # one sentence in 25


def sentence(rng: random.Random) -> str:
    """One random sentence without tags, such as 'Oh no, the dog is in the garden.'"""
    text = rng.choices(_PATTERNS, _WEIGHTS)[0]
    while match := re.search(r"\{(\w+)\}", text):
        text = text[: match.start()] + rng.choice(SLOTS[match[1]]) + text[match.end() :]
    return text[0].upper() + text[1:]


def scrambled(rng: random.Random, longest: int = 10, weights: list[float] | None = None) -> str:
    """One to `longest` words in any order, with marks anywhere: such a text can be spoken only by reading it.

    `weights` tells how often each word of the vocabulary is drawn.
    """
    words = rng.choices(vocabulary(), weights, k=rng.randint(1, longest))
    if rng.random() < 0.2:  # the same word again soon
        words.insert(rng.randrange(len(words) + 1), rng.choice(words))
    text, start = [], True
    for number, word in enumerate(words, 1):
        mark = rng.choices(["", ",", ".", "?", "!"], [80, 12, 4, 2, 2])[0]
        if number == len(words):
            mark = rng.choices([".", "?", "!", ""], [70, 15, 8, 7])[0]
        text.append((word[0].upper() + word[1:] if start and rng.random() < 0.85 else word) + mark)
        start = mark in (".", "?", "!")
    return " ".join(text)


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
    """Every word that the voice can say, as it is written inside a sentence."""
    words = Path(__file__).with_name("words.txt").read_text("utf-8").split()
    return [PROPER.get(word, word) for word in words]


def written_forms() -> list[str]:
    """Every word as it can stand in a text: inside it, with a capital, at its start; tags and voice names too."""
    forms = [f"{before}{tag}" for tag in TAGS for before in ("", " ")] + ["tara:", "leo:", "dan:"]
    for word in vocabulary():
        forms += dict.fromkeys([f" {word}", f" {word[0].upper()}{word[1:]}", f"{word[0].upper()}{word[1:]}"])
    return forms
