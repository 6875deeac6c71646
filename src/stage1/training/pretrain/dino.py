"""The student-teacher objective: the student's view of an image must match the averaged teacher's other view of it.

p_t = softmax((teacher(view 1) - center) / teacher_temperature), p_s = softmax(student(view 2) / student_temperature)
loss = mean over images and both ways of -sum p_t log p_s;  center <- m center + (1 - m) mean of the teacher's outputs
(from the mean of the first batch on, not from 0: else the first loss is low only because all outputs are alike).
Centring alone would make all outputs alike, sharpening (the low teacher temperature) alone one-sided; together they
hold.
Source: Caron et al. 2021 (DINO), section 3.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from stage1.config import PretrainConfig
from stage1.model.backbone import Backbone
from stage1.training.optim import sub_seed

_BOTTLENECK = 128


class ProjectionHead(nn.Module):
    """[N, D] -> [N, prototypes]: an MLP, then cosines to unit prototypes."""

    def __init__(self, dim: int, prototypes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, _BOTTLENECK))
        self.prototypes = nn.Parameter(torch.randn(prototypes, _BOTTLENECK))

    def forward(self, features: Tensor) -> Tensor:
        unit = functional.normalize(self.layers(features.float()), dim=1)
        return unit @ functional.normalize(self.prototypes, dim=1).T


def dino_loss(
    student: list[Tensor], teacher: list[Tensor], center: Tensor, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """Cross-entropy of the student's views against the teacher's other views; a scalar, no gradient into the teacher.

    student, teacher: outputs [N, K] of the same views in the same order; center: [K].
    """
    targets = [((output.detach() - center) / teacher_temperature).softmax(dim=1) for output in teacher]
    told = [(output / student_temperature).log_softmax(dim=1) for output in student]
    pairs = [(t, s) for t in range(len(targets)) for s in range(len(told)) if t != s]
    return torch.stack([-(targets[t] * told[s]).sum(dim=1).mean() for t, s in pairs]).mean()


def momentum_at(step: int, total: int, base: float) -> float:
    """Share of itself that the teacher keeps at `step`: from `base` to 1 by half a cosine (section 3.1)."""
    return 1.0 - (1.0 - base) * (math.cos(math.pi * step / total) + 1.0) / 2.0


class DinoObjective(nn.Module):
    """Heads, teacher and center of a run; the student's head is trained with the backbone."""

    views = 2

    def __init__(self, backbone: Backbone, config: PretrainConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(sub_seed(seed, "prototypes"))
            self.head = ProjectionHead(backbone.dim, config.prototypes)
        # What is frozen in the student is the same tensor in the teacher: no second copy of it in memory.
        frozen = {id(p): p for p in backbone.module.parameters() if not p.requires_grad}
        self.teacher = copy.deepcopy(backbone.module, dict(frozen)).requires_grad_(False).eval()
        self._students = {id(p) for p in backbone.module.parameters()}
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("center", torch.zeros(config.prototypes))
        self._seen = torch.zeros(config.prototypes)
        self._entropy = 0.0

    def loss(self, module: nn.Module, views: list[Tensor], epoch: int, step: int) -> Tensor:
        """Loss of one batch; module: the student; views: two tensors [N, 3, S, S] of the same images."""
        student = [self.head(module(view)) for view in views]
        with torch.no_grad():
            teacher = [self.teacher_head(self.teacher(view)) for view in views]
            self._seen = torch.cat(teacher).mean(dim=0)
            if epoch == step == 0:
                self.center.copy_(self._seen)
            told = ((torch.cat(teacher) - self.center) / self.config.teacher_temperature).softmax(dim=1)
            self._entropy = float(-(told * told.clamp_min(1e-12).log()).sum(dim=1).mean())
        assert isinstance(self.center, Tensor)
        return dino_loss(
            student, teacher, self.center, self.config.student_temperature, self.config.teacher_temperature
        )

    @torch.no_grad()
    def after_step(self, module: nn.Module, step: int, total: int) -> None:
        """Move center and teacher, once the student has moved; `step` counts from 0."""
        assert isinstance(self.center, Tensor)
        self.center.lerp_(self._seen, 1.0 - self.config.center_momentum)
        share = 1.0 - momentum_at(step, total, self.config.teacher_momentum)
        for mine, other in ((self.teacher, module), (self.teacher_head, self.head)):
            for average, current in zip(mine.parameters(), other.parameters(), strict=True):
                if average is not current:
                    average.lerp_(current, share)

    def kept(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: heads, center and what of the teacher is not the student's own."""
        state = {f"head.{name}": value for name, value in self.head.state_dict().items()}
        state |= {f"teacher_head.{name}": value for name, value in self.teacher_head.state_dict().items()}
        state |= {f"teacher.{name}": parameter for name, parameter in self._own()}
        assert isinstance(self.center, Tensor)
        return state | {"center": self.center}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.kept().items():
            tensor.copy_(state[name])

    def watched(self) -> dict[str, float]:
        """teacher_entropy of the last batch, nats: log(prototypes) says nothing, 0 always the same."""
        return {"teacher_entropy": self._entropy}

    def _own(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.teacher.named_parameters() if id(p) not in self._students]
