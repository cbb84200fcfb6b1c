"""What an evaluation counts: words, pitch, and intervals that hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orpheus.hearing.metrics import (
    RESAMPLES,
    bootstrap,
    difference,
    figure,
    median,
    median_f0_hz,
    medians,
    range_st,
    ratio,
    ratios,
    word_errors,
    words,
)

RATE = 24000


@pytest.mark.parametrize(
    "text, expected",
    [
        ("It's <laughs> 9 o'clock -- NOW!", "it's nine o'clock now"),
        ("‘Quoted’, don’t.", "quoted don't"),
        ("twenty-one 3.5", "twenty one three point five"),
        ("<sighs>", ""),
        ("Grüße, ЁЛКА; 音声。 हिन्दी", "grüße ёлка 音声 हिन्दी"),
    ],
)
def test_words_are_what_can_be_heard(text, expected):
    assert words(text) == expected.split()


@given(st.text())
@example("e'\u0301 İ Σ")
def test_words_are_normal_and_stay_so(text):
    found = words(text)
    assert words(" ".join(found)) == found
    assert all(word and not set(word) & set(' <>.,!?-_"') and word == word.strip("'") for word in found)


@given(st.lists(st.from_regex(r"[a-z]{1,8}", fullmatch=True), max_size=6), st.sampled_from([".", "!", "<laughs>", "—"]))
def test_case_tags_and_punctuation_make_no_error(plain, between):
    assert word_errors(" ".join(plain), f" {between} ".join(plain).upper().replace("<LAUGHS>", "<laughs>")) == 0


@pytest.mark.parametrize(
    "transcript, errors",
    [
        ("the train to london is late", 0),
        ("the rain to london is late", 1),
        ("train to london is late", 1),
        ("the train to to london is late", 1),
        ("a plane", 6),
        ("", 6),
    ],
)
def test_word_errors_of_known_edits(transcript, errors):
    assert word_errors("The train to London, <sighs> is late.", transcript) == errors


@pytest.mark.parametrize(
    "written, spoken",
    [
        ("Call me at 9:30 on May 3rd, 1984.", "call me at nine thirty on may third nineteen eighty-four"),
        ("It is 10:05, or 9:00.", "it is ten oh five or nine"),
        ("$25, £3.50, $1 and $2.5 million", "25 dollars three pounds 50 one dollar and 2.5 million dollars"),
        ("25% of 1,200 & 100,000", "twenty five percent of one thousand, two hundred and one hundred thousand"),
        ("In 2024 and the 1990s", "in twenty twenty four and the nineteen nineties"),
        ("Agent 007, room 5, 6 pm", "agent zero zero seven room five six pm"),
        (
            "the 21st of 12345678901234567",
            "the twenty-first of " + "one two three four five six seven eight nine zero "
            "one two three four five six seven",
        ),
    ],
)
def test_a_number_is_right_however_it_is_written(written, spoken):
    assert words(written) == words(spoken) and word_errors(written, spoken) == word_errors(spoken, written) == 0


def test_numbers_in_other_languages():
    assert words("25 Äpfel, 3,5 %", "de") == ["fünfundzwanzig", "äpfel", "drei", "fünf"]
    assert words("25 xyz", "tlh") == ["25", "xyz"]  # a language that num2words doesn't know


def test_word_errors_without_a_reference_are_insertions():
    assert word_errors("<laughs>", "ha ha") == 2 and word_errors("<laughs>", "") == 0


def test_a_ratio_is_the_sum_over_the_sum_and_a_median_the_middle():
    figure = ratio([1, 0, 3], [10, 5, 5])
    assert figure.value == pytest.approx(4 / 20) and figure.interval[0] <= 0.2 <= figure.interval[1]
    assert ratio([[1, 0], [3, 0]], [[5, 5], [5, 5]]).value == pytest.approx(4 / 20)
    assert median([[100.0, None], [None, None], [120.0, 200.0]]).value == 120


def test_nothing_counted_is_no_figure_and_one_clip_no_interval():
    assert ratio([0, 0], [0, 0]) is None and ratio([2], [0]) is None
    assert median([None, float("nan")]) is None
    assert ratio([1], [4]).interval is None and ratio([1, 0], [4, 0]).interval is None
    assert median([[100.0, 110.0]]).interval is None


def test_takes_of_one_clip_are_drawn_together():
    """Two clips, each always the same: a hundred takes of each are no more evidence than one."""
    assert ratio([[1] * 100, [0] * 100], [[1] * 100] * 2).interval == ratio([1, 0], [1, 1]).interval == (0, 1)


def test_intervals_are_deterministic_and_differ_by_seed():
    values = np.random.default_rng(0).random(40)

    def mean(chosen):
        assert chosen.shape == (RESAMPLES, 40)
        return values[chosen].mean(axis=1)

    assert bootstrap(mean, 40, seed=1) == bootstrap(mean, 40, seed=1) != bootstrap(mean, 40, seed=2)


def test_intervals_hold_the_truth_about_95_times_in_100():
    """150 experiments of 50 clips each: 142 are expected, and 8 are three standard errors of the count."""
    rng = np.random.default_rng(5)
    inside = {"wer": 0, "median": 0}
    for _ in range(150):
        lengths = rng.integers(5, 15, 50)
        low, high = ratio(rng.binomial(lengths, 0.3), lengths).interval
        inside["wer"] += low <= 0.3 <= high
        low, high = median(rng.normal(170, 10, 50)).interval
        inside["median"] += low <= 170 <= high
    assert all(134 <= count <= 149 for count in inside.values()), inside


@pytest.mark.parametrize("hz", [80, 117, 168, 207, 300])
def test_pitch_of_tones_and_pulses(hz):
    turns = np.arange(RATE) * hz / RATE
    rng = np.random.default_rng(0)
    pulses = np.diff(np.floor(turns), prepend=0)
    for sound in (0.3 * np.sin(2 * np.pi * turns), 0.5 * pulses, pulses + 0.02 * rng.standard_normal(RATE)):
        assert median_f0_hz(sound.astype(np.float32)) == pytest.approx(hz, rel=0.02)


def test_pitch_of_the_voiced_part_alone():
    rng = np.random.default_rng(0)
    tone = 0.3 * np.sin(2 * np.pi * 150 * np.arange(RATE) / RATE)
    sound = np.concatenate([0.05 * rng.standard_normal(RATE), tone, np.zeros(RATE)]).astype(np.float32)
    assert median_f0_hz(sound) == pytest.approx(150, rel=0.02)


@pytest.mark.parametrize("count", [0, 100, RATE])
def test_nothing_voiced_has_no_pitch(count):
    assert median_f0_hz(np.zeros(count, np.float32)) is None
    assert median_f0_hz(np.random.default_rng(1).standard_normal(count).astype(np.float32)) is None


def test_a_difference_is_paired():
    """Hard clips are hard for both: what differs is known far better than either figure is."""
    hard = np.linspace(0, 10, 30)
    first, other = ratios(hard, np.ones(30)), ratios(hard + 1, np.ones(30))
    found = difference(first, other)
    assert found.value == pytest.approx(1) and found.interval == pytest.approx((1, 1))
    low, high = figure(other).interval
    assert high - low > 1
    middle = difference(medians(hard), medians(hard - 2))
    assert middle.value == pytest.approx(-2) and middle.interval == pytest.approx((-2, -2))


def test_a_difference_needs_both_and_counts_clips_that_only_one_knows():
    assert difference(None, ratios([1], [1])) is None
    found = difference(medians([1.0, None, 3.0]), medians([2.0, 5.0, None]))
    assert found.value == pytest.approx(1.5) and np.isfinite(found.interval).all()


def test_the_range_of_a_pitch():
    assert range_st(np.geomspace(100, 200, 201)) == pytest.approx(0.9 * 12, rel=0.01)
    assert range_st(np.full(50, 120.0)) == 0 and range_st(np.full(3, 120.0)) is None
