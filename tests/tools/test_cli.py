"""The command line's own words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orpheus.__main__ import VERBS, main
from orpheus.cli import parse
from orpheus.config import SftOptions, VoiceOptions
from orpheus.errors import UserError
from orpheus.tools.speak import SpeakOptions

HELP = Path(__file__).parent / "help"
WRITE = "ORPHEUS_WRITE_HELP"  # set it to 1 to write the files anew, and read what changed


@pytest.mark.parametrize("args", [["--no-adapter"], ["--no_adapter"], ["--adapter", "none"], ["--adapter", "NONE"],
                                  ["--adapter=none"], ["--adapter", "None"]])  # fmt: skip
def test_no_adapter_in_every_spelling(args):
    assert parse(VoiceOptions, args).adapter is None
    assert parse(VoiceOptions, ["--adapter", "none_such"]).adapter == "none_such"


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "bench"])
def test_the_whole_help_of_a_verb(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")  # it is of one width everywhere
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    text, file = capsys.readouterr().out, HELP / f"{verb}.txt"
    if os.environ.get(WRITE):
        file.write_text(text, encoding="utf-8")
    assert stopped.value.code == 0 and text == file.read_text(encoding="utf-8"), f"changed: {WRITE}=1 writes it anew"
    options = text[text.index("\noptions:") :]
    assert not any(word in options for word in ("default: None", "{None", "[[", "(default: )"))
    assert all(len(line) <= 100 for line in options.splitlines())


@pytest.mark.parametrize(("args", "option", "value"), [
    ("--num-train-epochs 3", "train.epochs", 3.0), ("--per_device_train_batch_size 2", "train.batch_size", 2),
    ("--gradient-accumulation-steps 4", "train.gradient_accumulation", 4), ("--lr 1e-4", "train.learning_rate", 1e-4),
    ("--lora-r 8", "lora.r", 8), ("--lora_rank=8", "lora.r", 8), ("--model-name a/b", "model.base", "a/b"),
    ("--max_steps 0", "train.max_steps", 0), ("my_folder", "corpus.dataset", "my_folder"),
    ("--resume my_folder", "corpus.dataset", "my_folder"), ("--data my_folder", "corpus.dataset", "my_folder"),
    ("--no-load-in-4bit", "model.load_in_4bit", False), ("--load_in_4bit False", "model.load_in_4bit", False),
    ("--gradient-checkpointing true", "train.gradient_checkpointing", True), ("--out x", "output_dir", Path("x")),
    ("--target-modules q_proj v_proj --r 4", "lora.target_modules", ("q_proj", "v_proj")),
])  # fmt: skip
def test_the_names_that_people_bring(args, option, value):
    found = parse(SftOptions, args.split())
    for name in option.split("."):
        found = getattr(found, name)
    assert found == value and isinstance(found, type(value))


def test_texts_and_options_in_any_order():
    options = parse(SpeakOptions, ["a b", "--output-dir", "x", "- c", "--stream", "-", "--", "--strange", "-d"])
    assert options.prompts == ("a b", "- c", "-", "--strange", "-d")
    assert options.out == Path("x") and options.stream and options.model == VoiceOptions()


@pytest.mark.parametrize(("args", "said"), [
    (["--vioce", "tara"], "there is no option '--vioce': did you mean --voice"), (["-x"], "there is no option '-x'"),
    (["--voice"], "--voice needs a value"), (["--voice", "--stream"], "--voice needs a value"),
    (["--seed", "x"], "--seed is 'x', expected a whole number"),
    (["--temperature", "warm"], "--temperature is 'warm', expected a number"),
    (["--engine", "foo"], "--engine is 'foo', expected auto or torch or"),
    (["--stream=yes"], "--stream takes no value"), (["--top-p", "2"], "top_p is 2.0, expected 1e-06..1"),
    (["b\udcff"], r"the argument 'b\\udcff' is not text in"),
])  # fmt: skip
def test_an_option_s_mistake_is_one_line(args, said):
    with pytest.raises(UserError, match=said):
        parse(SpeakOptions, args)


def test_one_data_set():
    for args in (["a", "b"], ["a", "--dataset", "b"]):
        with pytest.raises(UserError, match="one data set is expected"):
            parse(SftOptions, args)
