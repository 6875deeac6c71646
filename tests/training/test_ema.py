from __future__ import annotations

import numpy as np
import pytest
import torch

from stage1.config import HeadConfig
from stage1.model.head import build_head
from stage1.training.optim import Ema, decay_at


def test_decay_warms_up_to_its_limit() -> None:
    assert [decay_at(step, 0.99) for step in (0, 1, 8)] == pytest.approx([0.1, 2 / 11, 0.5])
    assert decay_at(890, 0.99) == pytest.approx(0.99)
    assert decay_at(10_000, 0.99) == 0.99
    assert decay_at(5, 0.2) == 0.2


def test_average_equals_the_loop() -> None:
    head = build_head(HeadConfig(kind="mlp", hidden=4), 3, 2, seed=0)
    ema = Ema(head, 0.9)
    generator = torch.Generator().manual_seed(1)
    loop = [parameter.detach().double().numpy().copy() for parameter in head.parameters()]
    for step in range(150):
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        ema.update(head, step)
        decay = min(0.9, (1 + step) / (10 + step))
        loop = [
            decay * a + (1 - decay) * p.detach().double().numpy() for a, p in zip(loop, head.parameters(), strict=True)
        ]
    for average, expected in zip(ema.module.parameters(), loop, strict=True):
        np.testing.assert_allclose(average.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_the_average_shares_no_memory_with_the_weights_and_needs_no_gradient() -> None:
    head = build_head(HeadConfig(), 3, 2, seed=0)
    ema = Ema(head, 0.9)
    before = [parameter.clone() for parameter in ema.module.parameters()]
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(old, new) for old, new in zip(before, ema.module.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())
