from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from stage1.training import half
from stage1.training.half import half_arithmetic, half_precision, linear_weights

pytest.importorskip("timm", reason="the extra train is not installed")

CPU = torch.device("cpu")


def test_auto_on_a_cpu_is_for_large_linear_layers_where_it_multiplies_in_bfloat16(monkeypatch):
    with torch.device("meta"):
        large, small = nn.Linear(2500, 2000), nn.Linear(8, 8)
        mostly_convolutions = nn.Sequential(nn.Linear(2500, 2000), nn.Conv2d(800, 800, 3))
    assert (linear_weights(large), linear_weights(mostly_convolutions)) == (5_000_000, 0)
    for able in (True, False):
        monkeypatch.setattr(half, "cpu_multiplies_half", lambda able=able: able)
        assert half_precision("auto", CPU, large) is able
        assert not half_precision("auto", CPU, small)
        assert not half_precision("auto", CPU, mostly_convolutions)
        assert not half_precision("auto", CPU)
        assert not half_precision("float32", CPU, large)
        assert half_precision("bfloat16", CPU, small)


def test_products_are_in_bfloat16_and_attention_in_float32():
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 33, 16).bfloat16() for _ in range(3))
    exact = functional.scaled_dot_product_attention(query.float(), key.float(), value.float()).bfloat16()
    with half_arithmetic(CPU, nn.Identity()):
        assert functional.linear(torch.randn(2, 4), torch.randn(3, 4)).dtype == torch.bfloat16
        made = functional.scaled_dot_product_attention(query, key, value)
    assert made.dtype == torch.bfloat16
    assert torch.equal(made, exact)
    assert not torch.equal(functional.scaled_dot_product_attention(query, key, value), exact)  # what it replaces
