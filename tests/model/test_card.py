"""Model cards: what the hub reads, licences that are known or not named, and nothing that a name can break."""

from __future__ import annotations

import dataclasses
import os
import shutil
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from orpheus.errors import UserError
from orpheus.format.tokens import ORPHEUS
from orpheus.model import upload as uploading
from orpheus.model.adapter import write_card
from orpheus.model.card import evaluated, model_card, terms_of
from orpheus.model.provenance import Provenance, write_json

HUB = "unsloth/orpheus-3b-0.1-ft"
MADE = Provenance(
    base=HUB, codec="hubertsiuzdak/snac_24khz", layout=ORPHEUS, base_revision="0a1b", voices=("anna",),
    tags={"laughs": 12, "sighs": 3}, data_hash="cafe", versions={"torch": "2.13.0"},
    data={"name": "my_recordings", "hub_id": None, "clips": 90, "seconds": 1800.0, "left_out": {"silent": 2}},
    base_terms={"license": "llama3.2", "language": ["en"]},
    results={"validation_loss": 4.1, "validation_loss_before": 5.25, "steps": 60, "gates": {"ended": 0.9375},
             "why": "step 40 is kept"},
    config={"output_dir": "/home/anna/lora_anna", "lora": {"r": 64, "lora_alpha": 64},
            "train": {"batch_size": 1, "gradient_accumulation": 4, "learning_rate": 2e-4, "seed": 3407}},
)  # fmt: skip


def front(made: Provenance) -> dict:
    return ModelCard(model_card(made)).data.to_dict()


def test_the_hub_can_read_it():
    data = front(MADE)
    assert (data["base_model"], data["library_name"], data["pipeline_tag"]) == (HUB, "peft", "text-to-speech")
    assert (data["license"], data["language"]) == ("llama3.2", ["en"])
    assert "synthetic-speech" in data["tags"] and "datasets" not in data


def test_a_reader_finds_everything():
    card = model_card(MADE)
    for said in ("# lora_anna\n", "revision `0a1b`", "90 clips, 0.50 h", "2 left out (2 silent)", "`cafe`", "`anna`",
                 "`<laughs>` 12, `<sighs>` 3", "5.250 -> 4.100", "| gate: ended | 94% |", "step 40 is kept",
                 "60 steps of 1 × 4 clips", "consent", "synthetic speech", "![", 'OrpheusInference("lora_anna")',
                 'voice="anna"', "orpheus speak --adapter lora_anna --voice anna"):  # fmt: skip
        assert said in card, said
    assert "/home/anna" not in card


def test_its_snippet_is_python():
    code = model_card(MADE).split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")


@pytest.mark.parametrize("base", ["embedded:tiny_orpheus", "/home/anna/models/orpheus", "./orpheus"])
def test_a_base_that_is_no_id_of_the_hub_is_not_given_as_one(base):
    made = dataclasses.replace(MADE, base=base, base_terms={})
    assert "base_model" not in front(made) and "license" not in front(made)
    assert "not known: the base's own card names none" in model_card(made) and "/home" not in model_card(made)


def test_canopy_s_word_on_llama_s_licence_is_passed_on_for_its_own_bases():
    assert "Llama 3.2 Community License" in model_card(MADE)
    assert "Llama 3.2" not in model_card(dataclasses.replace(MADE, base="somebody/else", base_terms={}))


def test_a_data_set_of_the_hub_and_a_repository():
    data = {**MADE.data, "name": "Etherll/kaira", "hub_id": "Etherll/kaira"}
    config = {**MADE.config, "train": {**MADE.config["train"], "hub_repo_id": "anna/voice"}}
    made = dataclasses.replace(MADE, data=data, config=config)
    assert front(made)["datasets"] == ["Etherll/kaira"] and "# anna/voice\n" in model_card(made)


def test_an_exported_model():
    made = dataclasses.replace(MADE, merged_from="lora_anna")
    assert front(made)["library_name"] == "transformers"
    assert "orpheus speak --no-adapter --base lora_anna" in model_card(made) and "loss.png" not in model_card(made)


def test_what_was_replayed_is_counted():
    replay = {"utterances": 24, "seconds": 70.4, "voices": ["dan", "tara"], "tags": {"laughs": 12, "sighs": 12}}
    card = model_card(dataclasses.replace(MADE, data={**MADE.data, "replay": replay}))
    assert "24 utterances spoken by the base itself, 70 s, voices dan, tara, with `<laughs>` 12" in card


@pytest.mark.parametrize("name", ["a|b", "two\nlines", "<script>alert(1)</script>"])
def test_no_name_breaks_a_table(name):
    rows = model_card(dataclasses.replace(MADE, data={**MADE.data, "name": name})).splitlines()
    (row,) = [row for row in rows if row.startswith("| data |")]
    assert row.endswith(" |") and row.replace("\\|", "").count("|") == 3 and "<script>" not in row


def test_little_is_known_of_an_adapter_of_another_trainer():
    card = model_card(Provenance(base=HUB, codec="c", layout=ORPHEUS))
    assert "one, without a name" in card and "## Figures" not in card


def test_figures_of_an_evaluation_have_their_intervals(tmp_path, adapter_dir):
    folder = tmp_path / "voice"
    shutil.copytree(adapter_dir, folder)
    report = folder / "evaluation" / "report.json"
    assert evaluated(folder) == {}
    write_json(report, {"wer_generated": 0.4236, "wer_generated_ci": [0.31, 0.55], "wer_original": 0.1,
                        "wer_original_ci": [0, 0.2], "dnsmos_generated": None, "dnsmos_generated_ci": None,
                        "tag_hit_rate": 1.0, "tag_hit_rate_ci": [0.9, 1.0], "clips": 12})  # fmt: skip
    assert evaluated(folder) == {"wer, 12 clips": "0.424 [0.31, 0.55]", "tag hit rate, 12 clips": "1 [0.9, 1]"}
    card = write_card(folder).read_text(encoding="utf-8")
    assert "| wer, 12 clips | 0.424 [0.31, 0.55] |" in card and "95 %" in card
    os.utime(report, (0, 0))
    assert evaluated(folder) == {}, "that of the adapter before"


# ---- the licence ----


def base_with(folder, card: str | None):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    return str(folder)


def test_the_licence_is_that_of_the_base_s_card(tmp_path):
    card = "---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\nlanguage: de\ntags: [x]\n---\n# A base\n"
    terms = terms_of(base_with(tmp_path / "b", card))
    assert terms == {"license": "other", "license_name": "mine", "license_link": "LICENSE", "language": "de"}
    made = dataclasses.replace(MADE, base_terms=terms)
    assert front(made)["license_name"] == "mine" and "names `mine`" in model_card(made)


@pytest.mark.parametrize("card", [None, "", "# no front matter", "---\nlicense: [\n---\n", "---\njust words\n---\n",
                                  "---\nlicense:\n---\n"])  # fmt: skip
def test_a_licence_that_is_not_named_is_not_known(tmp_path, card):
    assert terms_of(base_with(tmp_path / "b", card)) == {}


@pytest.mark.parametrize("base", ["somebody/never-downloaded", "./nowhere", "not an id"])
def test_what_can_t_be_had_costs_no_training(base):
    assert terms_of(base) == {}


# ---- with the adapter ----


def test_it_lies_beside_the_adapter_instead_of_peft_s(adapter_dir):
    card = (adapter_dir / "README.md").read_text(encoding="utf-8")
    assert ModelCard(card).data.library_name == "peft" and "More Information Needed" not in card


def test_card_and_report_go_along_to_the_hub(adapter_dir, tmp_path, monkeypatch):
    from fnmatch import fnmatch

    sent = []

    def upload_folder(folder_path, repo_id, allow_patterns):
        sent.extend(p.name for p in folder_path.iterdir() if any(fnmatch(p.name, one) for one in allow_patterns))

    api = SimpleNamespace(
        create_repo=lambda repo_id, private, exist_ok: sent.append(f"private {private}"),
        upload_folder=upload_folder,
        upload_file=lambda path_or_fileobj, path_in_repo, repo_id: sent.append(f"{path_in_repo} of {path_or_fileobj}"),
    )
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: api)
    assert uploading.upload(adapter_dir, "me/voice", tmp_path / "r.html") == "https://huggingface.co/me/voice"
    assert {"README.md", "adapter_model.safetensors", "orpheus.json", "private True"} <= set(sent)
    assert f"report.html of {tmp_path / 'r.html'}" in sent
    api.upload_file = lambda **_: (_ for _ in ()).throw(OSError("no network"))
    with pytest.raises(UserError, match="the adapter is saved in"):
        uploading.upload(adapter_dir, "me/voice", tmp_path / "r.html")
