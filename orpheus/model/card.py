"""The model card of an adapter, README.md as the Hugging Face hub reads it: of what `orpheus.json` says, nothing else.

The licence is the one that the base's own card names, or none: it is never guessed.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from orpheus.config import BASE_VOICES
from orpheus.errors import UserError
from orpheus.model.checks import ADAPTER_WEIGHTS
from orpheus.model.hub import fetch, local_folder
from orpheus.model.provenance import Provenance, read_json, short_name

log = logging.getLogger(__name__)

FILE_NAME = "README.md"
EVALUATION = "evaluation"  # the folder of an evaluation, beside the adapter
LICENCE_KEYS = ("license", "license_name", "license_link")
LLAMA_NOTE = (
    "Orpheus is derived from Meta's Llama-3.2-3B, and Canopy's maintainers say that the Llama 3.2 Community License "
    "applies to its weights ([29](https://github.com/canopyai/Orpheus-TTS/issues/29), "
    "[33](https://github.com/canopyai/Orpheus-TTS/issues/33)): read it before you publish or sell"
)
INTERVALS = "\n\nIn brackets: the interval that holds 95 % of the bootstrap values over the clips."
CONSENT = """## Consent, and synthetic speech

Clone a voice only with the consent of the person it belongs to. A program wrote this card: it can't know whether there
was consent, and whoever publishes or uses this voice has to. What it speaks is **synthetic speech**: say so wherever
people could take it for real. The sound files that Orpheus LoRA writes say it in their metadata, with voice, model and
seed.
"""


def terms_of(base: str, revision: str | None = None) -> dict[str, Any]:
    """What a base's own card says of its licence and language; {}: there is no card, or it can't be had or read."""
    from huggingface_hub import ModelCard, hf_hub_download

    try:
        folder = local_folder(base, "base model")
        if folder is None:
            file = fetch("model card", base, lambda: hf_hub_download(base, FILE_NAME, revision=revision), "go without")
        elif (folder / FILE_NAME).is_file():
            file = str(folder / FILE_NAME)
        else:
            return {}
        said = ModelCard.load(file).data.to_dict()
    except UserError as error:
        log.info("the licence of the base is not known: %s", error)
        return {}
    except Exception as error:  # YAML of strangers fails in many ways, and no training is lost for a card
        log.info("the licence of the base is not known: its card can't be read (%s)", error)
        return {}
    return {key: said[key] for key in (*LICENCE_KEYS, "language") if said.get(key)}


def model_card(made: Provenance, measured: dict[str, str] | None = None) -> str:
    """The card of an adapter, or of an exported model that has one inside (`merged_from`).

    measured: more figures, by name (`evaluated`).
    """
    name = made.config.get("train", {}).get("hub_repo_id") or made.merged_from or _folder(made)
    kind = "A model with a LoRA adapter merged into" if made.merged_from else "A LoRA adapter for"
    parts = [
        _front_matter(made),
        f"# {name}",
        f"{kind} `{short_name(made.base)}`: text to speech, with tags in the text, by Orpheus TTS and the SNAC codec.",
        _table(made_of(made)),
        _figures(made, measured or {}),
        _use(made, str(name)),
        CONSENT,
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _folder(made: Provenance) -> str:
    return Path(str(made.config.get("output_dir") or "adapter")).name


def _front_matter(made: Provenance) -> str:
    """The hub refuses a card whose base or data set is no id of its own, so folders are left out here."""
    from huggingface_hub import ModelCardData

    languages = made.base_terms.get("language")
    about: dict[str, Any] = {
        "base_model": made.base if _on_hub(made.base) else None,
        "library_name": "transformers" if made.merged_from else "peft",
        "pipeline_tag": "text-to-speech",
        **{key: made.base_terms.get(key) for key in LICENCE_KEYS},
        "language": languages,
        "datasets": [made.data["hub_id"]] if made.data.get("hub_id") else None,
        "tags": ["orpheus", "text-to-speech", "lora", "synthetic-speech", "snac"],
    }
    data = ModelCardData(**{key: value for key, value in about.items() if value})
    return f"---\n{data.to_yaml()}\n---"


def _on_hub(name: str) -> bool:
    return name.count("/") == 1 and short_name(name) == name


def made_of(made: Provenance) -> dict[str, str]:
    """What it was made of, in the card's words."""
    data, config = made.data, made.config
    lora, train = config.get("lora", {}), config.get("train", {})
    rows = {
        "base": f"`{short_name(made.base)}`" + (f", revision `{made.base_revision}`" if made.base_revision else ""),
        "licence": _licence(made),
        "codec": f"`{short_name(made.codec)}`",
        "voices": ", ".join(f"`{voice}`" for voice in made.voices) or "one, without a name",
        "tags": ", ".join(f"`<{tag}>` {count}" for tag, count in made.tags.items()) or "none",
    }
    if data:
        rows["data"] = f"{data['name']}: {data['clips']} clips, {data['seconds'] / 3600:.2f} h of speech"
        if left := data.get("left_out"):
            rows["data"] += f"; {sum(left.values())} left out ({', '.join(f'{n} {why}' for why, n in left.items())})"
    if made.data_hash:
        rows["data hash"] = f"SHA-256 `{made.data_hash}` of samples, texts and voices"
    if replay := data.get("replay"):
        rows["replay"] = replay_line(replay)
    if lora and train:
        rows["trained"] = (
            f"{made.results.get('steps', '?')} steps of {train.get('batch_size')} × "
            f"{train.get('gradient_accumulation')} clips, r {lora.get('r')}, alpha {lora.get('lora_alpha')}, "
            f"learning rate {train.get('learning_rate')}, seed {train.get('seed')}"
        )
    rows["software"] = ", ".join(f"{name} {version}" for name, version in made.versions.items()) or "not known"
    return rows


def _licence(made: Provenance) -> str:
    named = made.base_terms.get("license_name") or made.base_terms.get("license")
    said = f"the base's own card names `{named}`" if named else "not known: the base's own card names none"
    return f"{said}. {LLAMA_NOTE}" if made.base in BASE_VOICES else said


def replay_line(replay: dict[str, Any]) -> str:
    """In words, what was mixed in of the base's own speech."""
    return (f"{replay['utterances']} utterances spoken by the base itself, {replay['seconds']:.0f} s, voices "
            f"{', '.join(replay['voices']) or 'without names'}, with "
            + ", ".join(f"`<{tag}>` {count}" for tag, count in replay["tags"].items()))  # fmt: skip


def figures(made: Provenance) -> dict[str, str]:
    """What was measured in training, in words, by name; gates as shares of what the battery spoke."""
    found = {}
    results = made.results
    if (loss := results.get("validation_loss")) is not None:
        before = results.get("validation_loss_before")
        found["validation loss, nats per token"] = f"{before:.3f} -> {loss:.3f}" if before else f"{loss:.3f}"
    for name, gate in results.get("gates", {}).items():
        found[f"gate: {name}"] = f"{gate:.0%}" if isinstance(gate, int | float) else _told(gate)
    return found


def _told(gate: Any) -> str:
    """A gate's result that is more than a share."""
    if isinstance(gate, dict):
        share, interval = gate.get("share"), gate.get("interval")
        said = [f"{share:.0%}"] if isinstance(share, int | float) else []
        said += [f"[{interval[0]:.0%}, {interval[1]:.0%}]"] if interval else []
        return " ".join([*said, str(gate.get("verdict", ""))]).strip()
    return str(gate)


def evaluated(adapter: Path) -> dict[str, str]:
    """What `orpheus evaluate` measured of an adapter and left in its folder `evaluation`, each with its interval.

    Nothing where there is no such report, and where it is older than the adapter: it is that of the one before.
    """
    file = adapter / EVALUATION / "report.json"
    if not file.is_file() or file.stat().st_mtime < (adapter / ADAPTER_WEIGHTS).stat().st_mtime:
        return {}
    report = read_json(file, "evaluate again with --overwrite")
    found = {}
    for name, value in report.items():
        interval = report.get(f"{name}_ci")
        if interval and isinstance(value, int | float) and not name.endswith(("_original", "_reconstruction")):
            said = f"{value:.3g} [{interval[0]:.3g}, {interval[1]:.3g}]"
            found[f"{name.removesuffix('_generated').replace('_', ' ')}, {report.get('clips')} clips"] = said
    return found


def _figures(made: Provenance, measured: dict[str, str]) -> str:
    found = figures(made) | measured
    if not found:
        return ""
    why = made.results.get("why")
    curve = "" if made.merged_from else "\n\n![The loss curves of the training](loss.png)"
    notes = (INTERVALS if measured else "") + (f"\n\n{_cell(why)}" if why else "")
    return f"## Figures\n\n{_table(found)}{notes}{curve}"


def _use(made: Provenance, name: str) -> str:
    voice = made.voices[0] if made.voices else None
    tag = next(iter(made.tags), None)
    text = f"Hello there{f', <{tag}>' if tag else ','} how are you?"
    speaker = f", voice={json.dumps(voice, ensure_ascii=False)}" if voice else ""
    option = f" --voice {voice}" if voice else ""
    arguments, options = f'"{name}"', f"--adapter {name}"
    if made.merged_from:
        arguments, options = f'None, base="{name}"', f"--no-adapter --base {name}"
    return f"""## How to use it

With Orpheus LoRA, which finds base and codec by `orpheus.json`:

```python
from orpheus import OrpheusInference

tts = OrpheusInference({arguments})
tts.generate("{text}"{speaker}, seed=1)[0].save("hello.wav")
```

```bash
orpheus speak {options}{option} "{text}"
```

With other programs: the prompt is {"`voice: text`" if voice else "the text alone"} in Orpheus' frame of special tokens,
and the answer is SNAC codes, seven tokens a frame."""


def _table(rows: dict[str, str]) -> str:
    return "| | |\n|---|---|\n" + "\n".join(f"| {_cell(name)} | {_cell(said)} |" for name, said in rows.items())


def _cell(text: Any) -> str:
    """A text that ends no cell and no line, and starts no markup of HTML."""
    plain = " ".join(str(text).split()).replace("|", "\\|")
    return "`".join(part if i % 2 else part.replace("<", "&lt;") for i, part in enumerate(plain.split("`")))
