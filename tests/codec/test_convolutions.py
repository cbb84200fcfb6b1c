"""The codec's own way to compute a layer gives what PyTorch's gives."""

from __future__ import annotations

import pytest
import torch

from orpheus.codec import convolutions


@pytest.mark.parametrize("dilation, padding, bias", [(3, 9, True), (9, 27, True), (2, 0, False)])
@pytest.mark.parametrize("block", [1, 900, 10**6])
def test_a_convolution_of_shifted_products_is_the_convolution(monkeypatch, dilation, padding, bias, block):
    """However many channels are computed at a time. (That no code changes, tests/codec/test_snac.py tests.)"""
    monkeypatch.setattr(convolutions, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    x, weight, offset = (torch.randn(*shape, generator=generator) for shape in ((2, 5, 300), (5, 1, 7), (5,)))
    expected = torch.conv1d(x, weight, offset if bias else None, padding=padding, dilation=dilation, groups=5)
    with torch.inference_mode():
        found = convolutions.shifted(weight, offset if bias else None, padding, dilation)(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
