"""Numbers written out, as they are spoken: a recogniser writes "9:30" where the text says "nine thirty"."""

from __future__ import annotations

import re
from typing import Any

from orpheus.errors import MissingPackage

MONEY = {"$": ("dollar", "dollars"), "£": ("pound", "pounds"), "€": ("euro", "euros")}
SIGNS = {"%": " percent ", "&": " and "}
LONGEST = 12  # digits; a longer number, and one that begins with 0, is read digit by digit
THOUSANDS = re.compile(r"(?<![0-9])[0-9]{1,3}(,[0-9]{3})+(?![0-9])")
SUM = re.compile(r"([$£€]) ?([0-9]+)(?:\.([0-9]{2}))?(?![0-9])((?:\.[0-9]+)? (?:hundred|thousand|million|billion)\b)?")
TIME = re.compile(r"(?<![0-9])([0-9]{1,2}):([0-5][0-9])(?![0-9])")
ORDINAL = re.compile(r"([0-9]+)(?:st|nd|rd|th)\b", re.IGNORECASE)
YEAR = re.compile(r"(?<![0-9.,:$£€])(?:1[1-9]|20)[0-9]{2}(?![0-9])(?![.,:][0-9])")
DECADE = re.compile(r"(?<![0-9])([0-9]*[1-9]0)'?s\b")
NUMBER = re.compile(r"([0-9]+)(?:\.([0-9]+))?")


def written_out(text: str, language: str = "en") -> str:
    """The text with its numbers in words: "$25 at 9:30" -> "twenty-five dollars at nine thirty".

    In English also sums, times, ordinals, years and the signs % and &; in other languages plain numbers, where
    num2words knows the language. Raises MissingPackage where there is a number and num2words is not installed.
    """
    if not re.search("[0-9%&]", text):
        return text
    if language == "en":
        text = DECADE.sub(lambda found: _say(found[1], language, "year").strip()[:-1] + "ies", text)
        text = YEAR.sub(lambda found: _say(found[0], language, "year"), text)
        text = THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
        text = SUM.sub(_sum, text)
        text = TIME.sub(_time, text)
        text = ORDINAL.sub(lambda found: _say(found[1], language, "ordinal"), text)
        for sign, word in SIGNS.items():
            text = text.replace(sign, word)
    return NUMBER.sub(lambda found: _number(found[1], found[2], language), text)


def _sum(found: re.Match[str]) -> str:
    sign, whole, small, scale = found.groups()
    if scale:
        return f"{whole}{f'.{small}' if small else ''}{scale} {MONEY[sign][1]}"
    return f"{whole} {MONEY[sign][int(whole) != 1]}{f' {small}' if small and small != '00' else ''}"


def _time(found: re.Match[str]) -> str:
    hour, minute = found.groups()
    return f"{hour} {'' if minute == '00' else f'oh {minute[1]}' if minute[0] == '0' else minute}"


def _number(whole: str, fraction: str | None, language: str) -> str:
    if language == "en" and fraction:
        return f"{_say(whole, language)} point {' '.join(_say(digit, language) for digit in fraction)}"
    return f" {_say(whole, language)} " + (f" {_say(fraction, language)} " if fraction else "")


def _say(digits: str, language: str, to: str = "cardinal") -> str:
    try:
        from num2words import num2words
    except ImportError as error:
        raise MissingPackage("num2words", "a number in a text") from error

    def say(number: str, **how: Any) -> str:
        try:
            return f" {num2words(int(number), lang=language, **how)} "
        except NotImplementedError:  # a language that it doesn't know
            return number

    alone = len(digits) > 1 and digits[0] == "0"
    return "".join(map(say, digits)) if alone or len(digits) > LONGEST else say(digits, to=to)
