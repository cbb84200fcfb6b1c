"""What is usual in a voice is learnt from its good clips, and of tags that it never heard nothing is learnt."""

from __future__ import annotations

import numpy as np
import pytest

from orpheus.data.usual import Heard, SpeechStatistics, above, learn, pace, within
from orpheus.speak.guard import FRAME_S, Limits
from tests.support.voices import some_codes

RNG = np.random.default_rng(3)


def clip(letters: int, seconds: float, silence_s: float = 0.2, tags: int = 0, held: int = 0) -> Heard:
    codes = some_codes(max(1, round(seconds / FRAME_S)), letters)
    codes.coarse[: held + 1] = 7
    return Heard("a" * letters + "<laughs>" * tags, seconds, -20.0, silence_s, codes)


def voice(tags: int = 0) -> list[Heard]:
    """Sixty clips of 20 letters a second, some a little slower; every third with tags of 1.5 s, if any."""
    return [clip(n, 0.2 + 0.05 * n * slow + 1.5 * tags * (n % 3 == 0), tags=tags * (n % 3 == 0))
            for n, slow in zip(range(20, 80), RNG.uniform(0.9, 1.1, 60), strict=True)]  # fmt: skip


@pytest.mark.parametrize("bad", [
    [clip(70, 1.0), clip(75, 0.8), clip(20, 8.0), clip(22, 30.0), clip(30, 12.0)],  # other clips' texts
    [clip(40 + n, 2.2 + 0.05 * n, silence_s=1.5 + n) for n in range(5)],  # long silence in them
    [clip(60 + n, 3.2 + 0.05 * n, held=25 + n) for n in range(5)],  # a sound that is held
])  # fmt: skip
def test_bad_clips_teach_nothing(bad):
    good, both = learn(voice()), learn([*voice(), *bad])
    for name in ("per_letter_s", "besides_s", "slowest", "quickest", "silence_s", "held", "repeated"):
        assert getattr(both, name) == pytest.approx(getattr(good, name), rel=0.05, abs=0.08), name
    assert good.clips == 60 and 58 <= both.clips <= 60
    text = "a" * 50
    assert Limits.of(both, text).longest_s == pytest.approx(Limits.of(good, text).longest_s, rel=0.05)


def test_a_voice_without_tags_keeps_the_default_for_a_tag():
    """Else the guard would cut a laugh that the base still knows."""
    usual = learn(voice())
    assert usual.per_tag_s == SpeechStatistics.per_tag_s and usual.per_letter_s == pytest.approx(0.05, rel=0.1)
    assert Limits.of(usual, "No. <laughs>").longest_s > Limits.of(usual, "No.").longest_s + usual.per_tag_s
    assert learn([*voice(), clip(30, 9.0, tags=1)]).per_tag_s == SpeechStatistics.per_tag_s  # one is no evidence
    assert learn(voice(tags=1)).per_tag_s == pytest.approx(1.5, rel=0.1)


def test_the_pace_of_each_clip():
    weights, ratios = pace(["a" * n for n in range(10, 40)], [0.1 * n for n in range(10, 39)] + [12.0])
    assert weights == pytest.approx([0, 0.1, 0.8], abs=0.01)
    assert ratios[:-1] == pytest.approx(1, rel=0.02) and ratios[-1] == pytest.approx(12 / 3.9, rel=0.02)


def test_far_from_the_others():
    values = np.array([1.0, 2, 3, 4, 5, 6, 7, 100])
    assert above(values, 0.1).tolist() == [False] * 7 + [True]
    assert within(np.array([1.0, 1, 1, 1, 1.5, -4]), 1.0).tolist() == [True] * 5 + [False]
