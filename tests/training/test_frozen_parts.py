from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stage1.training.frozen_parts import computed_once, frozen_parts

pytest.importorskip("timm", reason="the extra train is not installed")

from stage1.config import AdapterConfig, ImageTrainConfig
from stage1.training.image_model import prepare, swapped

from .image_tasks import tiny


def counted(modules: list[nn.Module]) -> list[int]:
    """How often each runs, in a list that goes on counting."""
    counts = [0] * len(modules)
    for place, module in enumerate(modules):

        def count(*_: object, place: int = place) -> None:
            counts[place] += 1

        next(part for part in module.modules() if not list(part.children())).register_forward_hook(count)
    return counts


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_resnet", "test_convnext"])
def test_two_sets_of_weights_run_the_frozen_parts_once_and_change_no_bit(name):
    backbone = tiny(name)
    prepare(backbone, AdapterConfig(), ImageTrainConfig(unfreeze="last"), 0)
    body = backbone.module.eval()
    trained = [parameter for parameter in body.parameters() if parameter.requires_grad]
    parts = frozen_parts(body)
    assert parts
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def both() -> list[Tensor]:
        made = [body(images)]
        with swapped(trained, [nn.Parameter(parameter * 1.5) for parameter in trained]):
            made.append(body(images))
        return made

    with torch.no_grad():
        plain = both()
        counts = counted(parts)
        with computed_once(body):
            shared = both()
        within = list(counts)
        again = body(images)
    assert not torch.equal(plain[0], plain[1])
    assert all(torch.equal(one, other) for one, other in zip(plain, shared, strict=True))
    assert within.count(1) >= len(within) - 1, within  # one may be changed in place by what follows it
    assert counts == [count + 1 for count in within]  # afterwards nothing is remembered
    assert torch.equal(again, plain[0])


class InPlace(nn.Module):
    """A frozen layer whose output, or input, is changed in place afterwards, and a trained one."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.first = nn.Linear(4, 4).requires_grad_(False)
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        given = x + 1.0
        made = self.first(given)
        (made if self.what == "output" else given).mul_(2.0)
        return self.last(made) + given


@pytest.mark.parametrize("what", ["output", "input"])
def test_what_is_changed_in_place_is_computed_again(what):
    torch.manual_seed(0)
    model, x = InPlace(what), torch.randn(2, 4)
    with torch.no_grad():
        plain = model(x)
        with computed_once(model):
            assert torch.equal(model(x), plain)
            assert torch.equal(model(x), plain)
            assert not torch.equal(model(x + 1), plain)  # another image


def test_parts_end_where_learning_begins():
    backbone = tiny()
    prepare(backbone, AdapterConfig(), ImageTrainConfig(unfreeze="all"), 0)
    assert frozen_parts(backbone.module) == []
    blocks = backbone.module.model.blocks
    prepare(backbone, AdapterConfig(), ImageTrainConfig(unfreeze="last"), 0)
    parts = frozen_parts(backbone.module)
    assert [part for part in parts if part in list(blocks)] == list(blocks)[:-1]
    assert backbone.module.model.norm not in parts
