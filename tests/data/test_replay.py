"""Replay: what a base is asked to say, which of it is good, and that it is said once and trained on alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from orpheus.config import BASE_VOICES, embedded_path
from orpheus.data import replay
from orpheus.data.replay import ATTEMPTS, Line, cache_folder, lines_of, make_replay, mixed, what_is_wrong
from orpheus.data.replay_texts import OF_FEW_WORDS, PLACE, SENTENCES
from orpheus.data.sources import open_source
from orpheus.data.usual import SpeechStatistics
from orpheus.errors import UserError
from orpheus.format.prompt import TAGS_BY_LANGUAGE, check_text, find_tags, strip_tags, unknown_words
from orpheus.format.tokens import ORPHEUS, Stop, StopReason
from orpheus.model.provenance import Provenance, own_words
from tests.support.voices import some_codes

FRAME = 2048
ENDED, OUT, RAN = (StopReason(kind, 0) for kind in Stop)
LINES = [Line(f"Text number {i}, <laughs> fine.", "tara") for i in range(20)]
TINY = Path(embedded_path("embedded:tiny_orpheus"))


class Base:
    """Speaks 30 frames of its seed; what is asked of it, and what goes wrong, is set by a test."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.bad = lambda line, seed: ENDED
        self.frames = 30

    def __call__(self, lines, seeds):
        self.asked += [(line.text, seed) for line, seed in zip(lines, seeds, strict=True)]
        return [(some_codes(self.frames, seed % 2**31), self.bad(line, seed))
                for line, seed in zip(lines, seeds, strict=True)]  # fmt: skip


@pytest.fixture
def base():
    return Base()


def make(base, folder, lines=LINES, seed=7):
    return make_replay(lines, base, ORPHEUS, folder, samples_per_frame=FRAME, seed=seed, progress=False)


# ---- what is said ----


@pytest.mark.parametrize("base", [name for name in BASE_VOICES if "hi" not in name.split("-")])
def test_every_published_base_has_sentences_with_its_own_tags_and_voices(base):
    lines = lines_of(base, None, (), 200, seed=1)
    assert {line.voice for line in lines} == set(BASE_VOICES[base])
    for line in lines:
        check_text(line.text)
        (tag,) = find_tags(line.text)
        assert tag in TAGS_BY_LANGUAGE[replay.LANGUAGE_OF[line.voice]]
    pairs = Counter((line.voice, *find_tags(line.text)) for line in lines)
    assert max(pairs.values()) - min(pairs.values()) <= 1, "voices and tags come in turn"


def test_a_copy_of_a_base_in_a_folder_is_known_by_its_name():
    copied, of_the_hub = (lines_of(f"{where}/orpheus-3b-0.1-ft", None, (), 3, 1) for where in ("/models", "unsloth"))
    assert copied == of_the_hub


def test_more_lines_begin_with_the_fewer_and_another_seed_gives_others():
    many, few = (lines_of("canopylabs/orpheus-3b-0.1-ft", None, (), n, seed=1) for n in (500, 100))
    assert many[:100] == few and lines_of("canopylabs/orpheus-3b-0.1-ft", None, (), 100, seed=2) != few
    assert len({(line.text, line.voice) for line in many}) == 500


def test_the_embedded_base_says_its_own_words_and_no_test_sentence():
    words, made = own_words(TINY), Provenance.load(TINY)
    lines = lines_of("embedded:tiny_orpheus", made, words, 60, seed=1)
    assert not unknown_words([line.text for line in lines], (), frozenset(words))
    assert {line.voice for line in lines} == {"dan", "leo", "tara"}
    assert {tag for line in lines for tag in find_tags(line.text)} == {"gasps", "giggles", "laughs", "sighs"}
    assert len([s for s in OF_FEW_WORDS if not unknown_words([s.replace(PLACE, "")], (), frozenset(words))]) >= 10
    from orpheus.config import CorpusOptions

    held_out = {strip_tags(r.text) for r in open_source(CorpusOptions(dataset="embedded:test_corpus")).records()}
    assert not held_out & {strip_tags(line.text) for line in lines}


def test_each_sentence_has_one_place_for_a_tag():
    for sentences in (*SENTENCES.values(), OF_FEW_WORDS):
        assert all(sentence.count(PLACE) == 1 for sentence in sentences) and len(set(sentences)) == len(sentences)


@pytest.mark.parametrize(
    "name, says", [("somebody/else", "are not known"), ("canopylabs/3b-hi-ft-research_release", "tags")]
)
def test_a_base_that_can_t_be_asked_is_refused(name, says):
    with pytest.raises(UserError, match=says):
        lines_of(name, None, (), 5, seed=1)


# ---- which of it is good ----


@pytest.mark.parametrize("seconds, stop, says", [
    (3.0, ENDED, ""), (3.0, OUT, "out of its slot"), (3.0, RAN, "did not end"), (0.3, ENDED, "too short"),
    (30.0, ENDED, "too long")])  # fmt: skip
def test_gates(seconds, stop, says):
    found = what_is_wrong(
        "Good morning Robert, <laughs> and welcome.", some_codes(9), stop, seconds, SpeechStatistics()
    )
    assert says in found and bool(found) == bool(says)


def test_a_bad_one_is_spoken_again_with_another_seed(base, tmp_path):
    base.bad = lambda line, seed: OUT if line == LINES[3] and seed < 1000 else ENDED
    made = make(base, tmp_path)
    assert len(made.lines) == 20 and not made.left_out
    assert len([1 for text, _ in base.asked if text == LINES[3].text]) == 2 and len(base.asked) == 21
    assert made.seconds == pytest.approx(20 * 30 * FRAME / 24000)


def test_one_that_stays_bad_is_left_out_and_not_asked_for_again(base, tmp_path):
    base.bad = lambda line, seed: RAN if line in LINES[:2] else ENDED
    made = make(base, tmp_path)
    assert made.left_out == {"did not end": 2} and made.lines == LINES[2:] and len(base.asked) == 18 + 2 * ATTEMPTS
    again = Base()
    assert make(again, tmp_path).left_out == made.left_out and not again.asked


def test_a_base_that_says_nothing_good(base, tmp_path):
    base.bad = lambda line, seed: OUT
    with pytest.raises(UserError, match=r"not one of 20 .*20 out of its slot"):
        make(base, tmp_path)


# ---- once ----


def test_what_was_spoken_is_kept_and_an_interruption_loses_nothing(base, tmp_path):
    def interrupted(lines, seeds):
        if len(base.asked) >= 8:
            raise KeyboardInterrupt
        return base(lines, seeds)

    with pytest.raises(KeyboardInterrupt):
        make(interrupted, tmp_path)
    rest = Base()
    made = make(rest, tmp_path)
    assert len(base.asked) == 8 and len(rest.asked) == 12
    whole = make(Base(), tmp_path / "other")
    assert made.about() == whole.about()
    more = Base()
    assert make(more, tmp_path, [*LINES, Line("One more, <sighs> please.", "leo")]).lines[:20] == LINES
    assert len(more.asked) == 1


@pytest.mark.parametrize("damage", ["{", "{}", '{"text": 1}', "null"])
def test_a_damaged_file_is_spoken_again(base, tmp_path, damage):
    whole = make(base, tmp_path)
    file = tmp_path / "00005.json"
    for text in (damage, json.dumps({**json.loads(file.read_text()), "ids": [5, 6]})):
        file.write_text(text)
        again = Base()
        assert make(again, tmp_path).about() == whole.about() and len(again.asked) == 1


def test_other_bases_and_seeds_have_folders_of_their_own(tmp_path):
    found = {cache_folder(tmp_path, {"base": base, "seed": seed}) for base in "ab" for seed in (1, 2)}
    assert len(found) == 4


# ---- among the clips ----


def test_it_is_trained_on_and_never_validated_on(base, tmp_path, run, renderer, layout):
    from tests.support.corpus_fixtures import many

    corpus = run(many(12), validation_share=0.25)
    made = make_replay(LINES[:5], base, layout, tmp_path / "r", samples_per_frame=FRAME, seed=1, progress=False)
    both = mixed(corpus, made, renderer, 4096)
    assert len(both.train) == len(corpus.train) + 5 and both.train.column_names == corpus.train.column_names
    assert both.validation.to_dict() == corpus.validation.to_dict()
    example = renderer.example(LINES[4].text, made.codes[4], "tara")
    assert both.train[-1] == {
        "input_ids": example.input_ids,
        "labels": example.labels,
        "length": len(example.input_ids),
    }
    assert both.voices == corpus.voices and both.tags == corpus.tags and both.data_hash == corpus.data_hash
    assert "replay  5 utterances of the base itself" in both.summary() and "5 laughs" in both.summary()
    assert both.about("x")["replay"]["utterances"] == 5 and "replay" not in corpus.about("x")


def test_one_that_does_not_fit_is_left_out(base, tmp_path, run, renderer, layout):
    from tests.support.corpus_fixtures import many

    made = make_replay(LINES[:5], base, layout, tmp_path / "r", samples_per_frame=FRAME, seed=1, progress=False)
    short = mixed(run(many(3)), made, renderer, 100)
    assert short.replay["utterances"] == 0 and short.replay["left_out"] == {"too many tokens": 5}
    assert short.replay["seconds"] == 0 and np.isfinite(short.replay["seconds"])
