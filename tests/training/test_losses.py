"""The lean loss is the model's own, in value and gradient, and never holds the logits of a whole row."""

from __future__ import annotations

import pytest
import torch

from orpheus.format.prompt import IGNORE, Renderer
from orpheus.model.base import load_base
from orpheus.training import losses
from orpheus.training.batches import Collator
from orpheus.training.losses import lean_loss_available, use_lean_loss
from orpheus.training.trainer import token_losses
from tests.support.voices import some_codes
from tests.training.test_trainer import adapter

pytestmark = pytest.mark.skipif(not lean_loss_available(), reason="this PyTorch has no linear_cross_entropy")


@pytest.fixture(scope="module")
def examples(tokenizer, layout):
    renderer = Renderer(tokenizer, layout)
    made = [renderer.example(f"clip {i}", some_codes(frames, seed=i)) for i, frames in enumerate((60, 3))]
    return [{"input_ids": e.input_ids, "labels": e.labels} for e in made]


def gradients(loaded) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in loaded.model.parameters() if p.requires_grad])


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("num_items", [None, torch.tensor(1000)])
def test_value_and_gradient_are_the_models_own(base_dir, examples, layout, packing, num_items):
    """Also over more rows than are computed at once."""
    loaded = adapter(base_dir)
    torch.manual_seed(0)
    for parameter in loaded.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    batch = Collator(layout.pad, packing)(examples)
    assert (batch["labels"] != IGNORE).sum() > losses.ROWS
    kwargs = {} if num_items is None else {"num_items_in_batch": num_items}
    loaded.model.train()
    usual = loaded.model(**batch, **kwargs, use_cache=False).loss
    usual.backward()
    expected = gradients(loaded)
    loaded.model.zero_grad()
    use_lean_loss(loaded.model)
    lean = loaded.model(**batch, **kwargs, use_cache=False)
    assert set(lean) == {"loss"}
    lean["loss"].backward()
    assert torch.allclose(lean["loss"], usual, rtol=1e-5)
    assert torch.allclose(gradients(loaded), expected, atol=1e-6 + 1e-4 * expected.abs().max())
    assert expected.abs().max() > 1e-5


def test_evaluation_gives_each_token_s_loss_and_generation_is_untouched(base_dir, examples, layout):
    loaded = load_base(str(base_dir), load_in_4bit=False)
    batch = Collator(layout.pad)(examples)
    loaded.model.eval()
    with torch.inference_mode():
        usual = loaded.model(**batch)
        logits = loaded.model(batch["input_ids"]).logits
        use_lean_loss(loaded.model)
        lean = loaded.model(**batch)
        assert torch.equal(loaded.model(batch["input_ids"]).logits, logits)
    expected = token_losses(usual.logits, batch["labels"])
    assert lean["token_losses"].dtype == torch.float32
    assert torch.allclose(lean["token_losses"], expected, atol=1e-4)
    assert torch.allclose(lean["loss"], usual.loss, rtol=1e-5)


def test_no_tensor_of_all_logits_is_made(base_dir, examples, layout):
    """Forward and backward: the largest tensor of the vocabulary's width has ROWS rows."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.most = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, torch.Tensor) and tensor.dim() > 1 and tensor.shape[-1] == layout.audio_end:
                    self.most = max(self.most, tensor.numel() // tensor.shape[-1])
            return out

    seen = {}
    for lean in (False, True):
        loaded = adapter(base_dir)
        loaded.model.train()
        if lean:
            use_lean_loss(loaded.model)
        with Watch() as watch:
            loaded.model(**Collator(layout.pad)(examples), use_cache=False)["loss"].backward()
        seen[lean] = watch.most
    assert seen[True] <= losses.ROWS < seen[False]
