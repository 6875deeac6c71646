"""The modules that heads are made of: linear, MLP, selective, ensemble, and a gate fitted after a classifier.

A head maps features [N, D] to logits [N, K] or, where it is `gated`, to (logits [N, K], gate logits [N]): higher = the
answer is more likely right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stage1.config import HeadConfig

# Where gates start: most images let through, so that the classifier gets gradients from the first step on.
_PASSED, _ABSTAINED = 0.8, 0.1

Floats: TypeAlias = NDArray[np.float64]
Made: TypeAlias = Tensor | tuple[Tensor, Tensor]


class Head(nn.Module):
    """Logits = layers((features - mean) / scale).

    mean, scale: float32 [D] buffers, the statistics of the train features: they travel with the weights and into
    the exported graph, so raw backbone features go in everywhere.
    """

    gated = False

    def __init__(self, config: HeadConfig, dim: int, n_classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float32))
        self.register_buffer("scale", torch.ones(dim, dtype=torch.float32))
        # skip_init: nn.Linear would draw from the global generator; `build_head` fills the weights from its own.
        if config.one_layer:
            self.layers = nn.Sequential(_linear(dim, n_classes))
        else:
            self.layers = nn.Sequential(
                _linear(dim, config.hidden), nn.GELU(), nn.Dropout(config.dropout), _linear(config.hidden, n_classes)
            )

    def forward(self, features: Tensor) -> Tensor:
        """features: float32 [N, D] as the backbone gives them. Returns logits, float32 [N, K]."""
        return self.layers((features - self.mean) / self.scale)

    @torch.no_grad()
    def standardise(self, mean: NDArray[np.float32], scale: NDArray[np.float32]) -> None:
        """Set the fixed normalisation, float32 [D] each; `scale` must be positive."""
        self.mean.copy_(torch.tensor(mean, dtype=torch.float32))
        self.scale.copy_(torch.tensor(scale, dtype=torch.float32))

    @torch.no_grad()
    def start_at(self, frequencies: Floats) -> None:
        """Set the bias of the last layer to the log of these class frequencies [K], all > 0.

        From zero, a bias moves by about the learning rate a step: a rare class then costs the first epochs, and early
        stopping ends before the probabilities are those of the data.
        """
        last = [layer for layer in self.layers if isinstance(layer, nn.Linear)][-1]
        last.bias.copy_(_log_frequencies(frequencies))

    def _layers(self) -> list[nn.Linear]:
        """The linear layers in the order of their random draws."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def _last(self) -> list[nn.Linear]:
        """Those that start near zero: the ones that make an output."""
        return self._layers()[-1:]


class Parts(NamedTuple):
    """What a selective head makes of N images: class logits [N, K], gate logit [N], and what only its loss needs.

    extra: the auxiliary head's logits [N, K] of SelectiveNet, else the logit of abstention [N, 1].
    """

    logits: Tensor
    gate: Tensor
    extra: Tensor


class SelectiveHead(nn.Module):
    """A trunk (one hidden layer) shared by a classifier and a gate.

    selectivenet: classifier, gate and auxiliary classifier on the trunk (Geifman and El-Yaniv 2019, section 3).
    deepgamblers, sat: one more logit, abstention (Liu et al. 2019; Huang et al. 2020). Their gate logit is that of
    "not abstaining": log sum exp of the class logits - abstention logit. Answers come from the class logits alone (Feng
    et al. 2023).
    """

    def __init__(self, config: HeadConfig, dim: int, n_classes: int) -> None:
        super().__init__()
        self.gated = config.gate == "auto"
        self.n_classes = n_classes
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float32))
        self.register_buffer("scale", torch.ones(dim, dtype=torch.float32))
        width = config.hidden
        self.trunk = nn.Sequential(_linear(dim, width), nn.GELU(), nn.Dropout(config.dropout))
        apart = config.kind == "selectivenet"
        self.classifier = _linear(width, n_classes if apart else n_classes + 1)
        self.gate = nn.Sequential(_linear(width, width), nn.GELU(), _linear(width, 1)) if apart else None
        self.auxiliary = _linear(width, n_classes) if apart else None

    def parts(self, features: Tensor) -> Parts:
        """features: float32 [N, D] as the backbone gives them."""
        hidden = self.trunk((features - self.mean) / self.scale)
        logits = self.classifier(hidden)
        if self.gate is not None and self.auxiliary is not None:
            return Parts(logits, self.gate(hidden)[:, 0], self.auxiliary(hidden))
        chosen, abstention = logits[:, : self.n_classes], logits[:, self.n_classes :]
        return Parts(chosen, torch.logsumexp(chosen, dim=1) - abstention[:, 0], abstention)

    def forward(self, features: Tensor) -> Made:
        made = self.parts(features)
        return (made.logits, made.gate) if self.gated else made.logits

    standardise = Head.standardise

    @torch.no_grad()
    def start_at(self, frequencies: Floats) -> None:
        """As Head.start_at; gates start at "let most through"."""
        bias = _log_frequencies(frequencies)
        self.classifier.bias[: self.n_classes] = bias
        if self.auxiliary is not None:
            self.auxiliary.bias.copy_(bias)
            self._gate_out().bias.fill_(math.log(_PASSED / (1 - _PASSED)))
        else:
            self.classifier.bias[self.n_classes] = torch.logsumexp(bias, 0) + math.log(_ABSTAINED / (1 - _ABSTAINED))

    def _gate_out(self) -> nn.Linear:
        assert self.gate is not None
        layer = self.gate[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def _layers(self) -> list[nn.Linear]:
        return [layer for layer in self.modules() if isinstance(layer, nn.Linear)]

    def _last(self) -> list[nn.Linear]:
        ends = [self.classifier]
        if self.auxiliary is not None:
            ends += [self.auxiliary, self._gate_out()]
        return ends


class Ensemble(nn.Module):
    """Heads of one config side by side: logits (and gate logits) are the means of theirs. One graph in the export."""

    def __init__(self, config: HeadConfig, dim: int, n_classes: int) -> None:
        super().__init__()
        self.members = nn.ModuleList([new_member(config, dim, n_classes) for _ in range(config.members)])
        self.gated = bool(self.members[0].gated)

    def forward(self, features: Tensor) -> Made:
        made = [split(member(features)) for member in self.members]
        logits = torch.stack([logits for logits, _ in made]).mean(dim=0)
        gates = [gate for _, gate in made if gate is not None]
        return (logits, torch.stack(gates).mean(dim=0)) if gates else logits

    def standardise(self, mean: NDArray[np.float32], scale: NDArray[np.float32]) -> None:
        for member in self.members:
            member.standardise(mean, scale)

    def start_at(self, frequencies: Floats) -> None:
        for member in self.members:
            member.start_at(frequencies)


Classifier: TypeAlias = Head | SelectiveHead | Ensemble


class Gate(nn.Module):
    """A two-class head wrong / right on `gate_inputs`, on top of what the margin alone says.

    gate logit = slope x margin + offset + (logit "right" - logit "wrong") of `head`. slope, offset: float32 buffers,
    logistic regression of "right" on the margin; `head` starts near zero, so the gate starts where the margin's
    knowledge ends.
    """

    gated = False

    def __init__(self, config: HeadConfig, dim: int) -> None:
        super().__init__()
        self.head = Head(config, dim, 2)
        self.register_buffer("slope", torch.zeros((), dtype=torch.float32))
        self.register_buffer("offset", torch.zeros((), dtype=torch.float32))

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs: float32 [N, D + K + 1], the margin last. Returns logits [N, 2], wrong and right."""
        known = 0.5 * (self.slope * inputs[:, -1] + self.offset)
        return self.head(inputs) + torch.stack([-known, known], dim=1)


class GatedHead(nn.Module):
    """A classifier and a gate that was fitted after it. See `gate_inputs` for what the gate reads."""

    gated = True

    def __init__(self, classifier: Classifier, gate: Gate) -> None:
        super().__init__()
        self.classifier = classifier
        self.gate = gate

    def forward(self, features: Tensor) -> Made:
        logits, _ = split(self.classifier(features))
        judged = self.gate(gate_inputs(features, logits))
        return logits, judged[:, 1] - judged[:, 0]


def gate_inputs(features: Tensor, logits: Tensor) -> Tensor:
    """[N, D] features, the classifier's centred logits [N, K] and its margin (top - second) [N, 1], side by side."""
    top = torch.topk(logits, 2, dim=1).values
    return torch.cat([features, logits - logits.mean(dim=1, keepdim=True), top[:, :1] - top[:, 1:]], dim=1)


def split(made: Made) -> tuple[Tensor, Tensor | None]:
    """Logits and, where the head is gated, gate logits of what a head returned."""
    return made if isinstance(made, tuple) else (made, None)


def members_of(head: nn.Module) -> Sequence[nn.Module]:
    """The heads that are trained each by itself: of an ensemble its members, else the head."""
    return list(head.members) if isinstance(head, Ensemble) else [head]


def new_member(config: HeadConfig, dim: int, n_classes: int) -> Head | SelectiveHead:
    return SelectiveHead(config, dim, n_classes) if config.selective else Head(config, dim, n_classes)


def _log_frequencies(frequencies: Floats) -> Tensor:
    bias = np.log(frequencies / frequencies.sum())
    return torch.tensor(bias - bias.mean(), dtype=torch.float32)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=torch.float32)
