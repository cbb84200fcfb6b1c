"""Gates while a voice is trained: the adapter as it stands speaks the battery by the code that users speak with."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from orpheus.config import SamplingOptions
from orpheus.engines.choose import Opened
from orpheus.evaluate.apart import Apart
from orpheus.evaluate.battery import Battery, Speaker, prepare
from orpheus.evaluate.listen import Ears, find_detector
from orpheus.hearing.recognise import find_recogniser
from orpheus.model.adapter import save_adapter
from orpheus.model.base import free_memory
from orpheus.model.hub import local_folder
from orpheus.model.provenance import Provenance, own_sampling, own_words
from orpheus.training.choosing import Verdict

if TYPE_CHECKING:
    from orpheus.codec.snac import SnacCodec
    from orpheus.data.corpus import Corpus
    from orpheus.model.base import LoadedModel


class TrainingJudge:
    """The judge of a training of `model` on `corpus` (`orpheus.training.choosing.Judge`).

    made: the provenance that its adapter will have. seed: of what is drawn. The recordings are listened to when it is
    first asked, or never.
    """

    def __init__(self, model: LoadedModel, codec: SnacCodec, corpus: Corpus, made: Provenance, seed: int) -> None:
        self.model, self.codec, self.corpus, self.made = model, codec, corpus, made
        folder = local_folder(model.base, "base model")
        self.known = own_words(folder)
        self.sampling = SamplingOptions(seed=seed).over(own_sampling(folder))
        self.battery: Battery | None = None

    def __call__(self, folder: Path) -> Verdict:
        """Let the adapter speak the battery as it stands; WAVs and gates.json go into `folder`."""
        if self.battery is None:
            ears = Ears(find_recogniser("auto"), detector=find_detector(self))
            self.battery = prepare(self.corpus, self.codec, self.model.layout, self.known, ears, self.sampling)
        with self.speaker() as tts:
            found = self.battery.speak(tts, folder)
        return Verdict(found.score, found.shares(), found.sentence)

    @contextmanager
    def speaker(self) -> Iterator[Speaker]:
        """What speaks with the adapter as it stands: the model in memory, or with Unsloth a process of its own."""
        from orpheus.engines.torch.engine import TorchEngine
        from orpheus.speak.inference import OrpheusInference

        model = self.model
        if model.backend == "unsloth":  # it has replaced the layers' code, which our engine steps
            with tempfile.TemporaryDirectory() as folder, Apart(save_adapter(model, Path(folder), self.made)) as apart:
                yield apart
            return
        engine = TorchEngine(model)
        about = {"base": model.base, "revision": model.revision, "in_4bit": model.in_4bit, "device": str(model.device)}
        yield OrpheusInference.of(Opened(engine, model.tokenizer, self.made.codec, str(model.device), self.made, True,
                                         model.voices, about, {}, self.known), self.codec)  # fmt: skip
        engine.close()
        free_memory()
