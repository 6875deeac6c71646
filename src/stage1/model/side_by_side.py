"""Several backbones on one image: `backbone.name=embedded+embedded-lite2`, one graph, their features side by side.

All see the image as the first one's preprocessing makes it, at its size and by its kernel: a second resize inside the
graph would be of an image that was resized already. What another one expects in mean and standard deviation is a
change of scale and shift for each channel, exact up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stage1.model.embedded import LICENCES_JOIN
from stage1.model.origin import UNKNOWN, Origin
from stage1.runtime.preprocessing import Preprocessing


class SideBySide(nn.Module):
    """float32 [N, 3, S, S], normalised as the first takes it -> float32 [N, sum of the widths].

    modules: one for each backbone, from an image of its own normalisation to features [N, D]. specs: their
    preprocessing.
    """

    def __init__(self, modules: Sequence[nn.Module], specs: Sequence[Preprocessing]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        first = specs[0]
        for index, spec in enumerate(specs):
            pairs = list(zip(first.mean, first.std, spec.mean, spec.std, strict=True))
            scale = torch.tensor([s / other for _, s, _, other in pairs]).reshape(1, 3, 1, 1)
            shift = torch.tensor([(m - other) / o for m, _, other, o in pairs]).reshape(1, 3, 1, 1)
            self.register_buffer(f"scale_{index}", scale)
            self.register_buffer(f"shift_{index}", shift)
        self.alike = [(spec.mean, spec.std) == (first.mean, first.std) for spec in specs]

    @property
    def model(self) -> nn.Module:
        """The first one's timm model, for messages about sizes."""
        return self.parts[0].model

    @property
    def pooling(self) -> Any:
        """The first one's."""
        return self.parts[0].pooling

    def forward(self, image: Tensor) -> Tensor:
        made = []
        for index, part in enumerate(self.parts):
            own = image
            if not self.alike[index]:
                own = image * getattr(self, f"scale_{index}") + getattr(self, f"shift_{index}")
            made.append(part(own))
        return torch.cat(made, dim=1)


def joint_origin(origins: Sequence[Origin]) -> Origin:
    """Of all together: every licence, unknown where one is; the base model of the first that has one."""
    licences = [origin.licence for origin in origins]
    licence = (
        UNKNOWN if UNKNOWN in licences else licences[0] if len(set(licences)) == 1 else LICENCES_JOIN.join(licences)
    )
    base = next((origin.base_model for origin in origins if origin.base_model), None)
    return Origin(licence, base, origins[0].weights_sha256)
