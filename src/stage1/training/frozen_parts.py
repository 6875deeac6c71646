"""The frozen parts in front of what learns compute the same for raw and for averaged weights: once for both.

Where only the last block of a ViT learns, a validation by both sets of weights takes little more than by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def frozen_parts(model: nn.Module) -> list[nn.Module]:
    """The largest modules with parameters, in the model's order, before the first parameter that is trained."""
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> bool:
        """Whether everything in `module` is frozen; all of it is, or the search ends in it."""
        parameters = list(module.parameters())
        if not any(parameter.requires_grad for parameter in parameters):
            found.extend([module] if parameters else [])
            return True
        if not any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            for child in module.children():
                if not visit(child):
                    break
        return False

    visit(model)
    return found


@contextmanager
def computed_once(model: nn.Module) -> Iterator[None]:
    """Inside the block a frozen part that gets what it got before gives what it gave; the same bits, less time.

    For passes without gradients in eval mode, where an output is a function of the input: nothing random, and the
    frozen parts' weights stay. What they gave is kept until the end of the block.
    """
    parts = frozen_parts(model)
    for part in parts:
        part.forward = _Remembering(part.forward)
    try:
        yield
    finally:
        for part in parts:
            del part.forward


@dataclass(slots=True)
class _AsItWas:
    """A tensor as it was: what changes it in place counts its version up."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> _AsItWas:
        return cls(tensor, tensor._version)

    @property
    def unchanged(self) -> bool:
        return self.tensor._version == self.version

    def equals(self, other: Tensor) -> bool:
        mine = self.tensor
        alike = mine.shape == other.shape and mine.dtype == other.dtype and mine.stride() == other.stride()
        return self.unchanged and (mine is other or (alike and torch.equal(mine, other)))


class _Remembering:
    """A forward method that remembers its last call, where it maps one tensor to one."""

    def __init__(self, forward: Any) -> None:
        self._forward = forward
        self._last: tuple[_AsItWas, _AsItWas] | None = None

    def __call__(self, *args: Any, **options: Any) -> Any:
        if options or len(args) != 1 or not isinstance(args[0], Tensor):
            return self._forward(*args, **options)
        if self._last is not None and self._last[1].unchanged and self._last[0].equals(args[0]):
            return self._last[1].tensor
        given = _AsItWas.of(args[0])
        made = self._forward(*args)
        self._last = (given, _AsItWas.of(made)) if isinstance(made, Tensor) and given.unchanged else None
        return made
