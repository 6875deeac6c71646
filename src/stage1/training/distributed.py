"""Many processes: what torchrun started, sums over them, and what happens when one of them dies.

Each process computes the gradient of its share of a step's images; the shares are disjoint and make up the whole, and
the sum over processes, divided by the whole's weight, is the gradient that one process would have computed. No wrapper
around the module: it stays the same in one process and in many, and processes may cut their shares into batches as
memory allows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from stage1.errors import ConfigError, MissingError, Stage1Error

# A killed process is noticed at once, as its connections close; this is for one that hangs.
TIMEOUT = timedelta(minutes=10)


class PeerLost(Stage1Error):
    """Another process is gone or does not answer; nothing of the step that was under way counts."""


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among `world` of them: rank 0..world - 1, `local_world` on this machine. One alone by default."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def share(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """This process's part of `rows` [N]: every world-th; parts are disjoint, complete, perhaps empty."""
        return rows[self.rank :: self.world]

    def add(self, tensor: Tensor) -> Tensor:
        """`tensor` summed over all processes, in place. Raises PeerLost."""
        if self.world > 1:
            try:
                dist.all_reduce(tensor)
            except RuntimeError as error:  # gloo and NCCL have no type of their own for a closed connection
                raise PeerLost(f"another of the {self.world} processes is gone or silent") from error
        return tensor

    def any(self, claim: bool) -> bool:
        """Whether any process makes the claim; all get the same answer. Raises PeerLost."""
        return claim if self.world == 1 else bool(self.add(torch.tensor([float(claim)], device=self._device()))[0] > 0)

    def add_gradients(self, parameters: Sequence[nn.Parameter], numbers: Sequence[float]) -> list[float]:
        """Sum gradients (None is zero) and some numbers over all processes at once; returns the numbers."""
        if self.world == 1:
            return list(numbers)
        device = parameters[0].device
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        extra = torch.tensor(list(numbers), dtype=torch.float32, device=device)
        flat = self.add(torch.cat([*(g.reshape(-1) for g in gradients), extra]))
        place = 0
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = flat[place : place + gradient.numel()].view_as(gradient)
            place += gradient.numel()
        return [float(value) for value in flat[place:].tolist()]

    def join(self, part: NDArray[np.float32], n: int) -> NDArray[np.float32]:
        """Rows [n, ...], each process having its `share(arange(n))`, in order, to all. Raises PeerLost."""
        if self.world == 1:
            return part
        whole = torch.zeros((n, *part.shape[1:]), dtype=torch.float32, device=self._device())
        whole[self.rank :: self.world] = torch.from_numpy(part).to(whole.device)
        return np.asarray(self.add(whole).cpu().numpy())

    def agree(self, text: str, what: str) -> None:
        """Check that all processes hold the same text (a digest, say). Raises ConfigError in all where they do not."""
        if self.world == 1:
            return
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:3])  # exact in float32
        total = self.add(torch.tensor([float(number), float(number) ** 2], dtype=torch.float64, device=self._device()))
        mean = total / self.world
        if float(mean[1] - mean[0] ** 2) > 0.5:
            raise ConfigError(
                f"{what} differs between the {self.world} processes; start them all with the same command"
            )

    def wait(self) -> None:
        """Until all processes are here. Raises PeerLost."""
        self.any(False)

    def _device(self) -> torch.device:
        nccl = dist.get_backend() == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """The group that torchrun started (RANK, WORLD_SIZE and others in the environment), or this process alone.

    gloo on CPUs, NCCL on GPUs. A group that the caller has set up already is used and not closed.
    Raises Stage1Error where the others cannot be reached.
    """
    if dist.is_initialized():
        yield _described(dist.get_rank(), dist.get_world_size())
        return
    world = world_size()
    if world == 1:
        yield Processes()
        return
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())[:160]
        raise Stage1Error(
            f"WORLD_SIZE={world}: the other processes cannot be reached ({why}); start with torchrun"
        ) from error
    yield _described(dist.get_rank(), world)
    # Only after success: with a process gone, taking the group down would wait for it.
    dist.destroy_process_group()


def world_size() -> int:
    """How many processes torchrun started, before they know of each other; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _described(rank: int, world: int) -> Processes:
    local_rank, local_world = (
        int(os.environ.get(name, value)) for name, value in (("LOCAL_RANK", rank), ("LOCAL_WORLD_SIZE", world))
    )
    return Processes(rank, world, local_rank, local_world)


def chosen_device(name: str) -> torch.device:
    """The device called `name`; "auto": CUDA where there is one, else CPU; under torchrun one for each process.

    Raises MissingError for one that is not there, ConfigError for a name that is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r}: no such kind of device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
        if index >= count:
            raise MissingError(f"device {name!r}: not there ({count} CUDA devices); use device=auto or cpu")
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    if device.type != "cpu":
        raise MissingError(f"device {name!r}: not supported here; use device=auto, cpu or cuda")
    return device


def lost(error: PeerLost, what: str, kept: str) -> Stage1Error:
    """The one line for a run that ends because a process is gone."""
    return Stage1Error(f"{what}: {error}; {kept}; start the same command again to go on")


def facts(group: Processes) -> dict[str, Any]:
    """For the log."""
    return {"rank": group.rank, "processes": group.world}
