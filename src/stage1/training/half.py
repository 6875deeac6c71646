"""When a backbone learns in bfloat16, and how: on GPUs that have it, and on CPUs that multiply in it.

On a CPU with avx512_bf16 or AMX a ViT's products take half of the time of float32, while a ConvNet's gradients of
depthwise convolutions take more; below some millions of weights in linear layers the casts cost what the products save.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from stage1.errors import ConfigError

# Of linear layers. A ViT-Tiny has 5.3 million, of which half of the time is theirs.
_ENOUGH_WEIGHTS = 5_000_000


def half_precision(precision: str, device: torch.device, model: nn.Module | None = None) -> bool:
    """Whether the backbone `model` learns in bfloat16. Raises ConfigError where it is asked for and there is none.

    auto: on a GPU where it has it; on a CPU where it multiplies in it and `model` is one of large linear layers.
    """
    if device.type == "cuda":
        able = bool(torch.cuda.is_bf16_supported())
        if precision == "bfloat16" and not able:
            raise ConfigError(f"precision=bfloat16: {device} has none; use precision=float32")
        return able and precision != "float32"
    if precision == "auto":
        return model is not None and linear_weights(model) >= _ENOUGH_WEIGHTS and cpu_multiplies_half()
    return precision == "bfloat16"


def linear_weights(model: nn.Module) -> int:
    """Weights in linear layers, where these hold most of all parameters; else 0."""
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    return linear if 2 * linear > sum(parameter.numel() for parameter in model.parameters()) else 0


def cpu_multiplies_half() -> bool:
    """Whether this CPU has products of bfloat16 (avx512_bf16 or AMX); without them torch imitates them, slowly."""
    able: Mapping[str, Any] = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


@contextmanager
def half_arithmetic(device: torch.device, model: nn.Module) -> Iterator[None]:
    """Inside the block products are in bfloat16; sums and norms in float32, and on a CPU attention, too.

    torch's attention for CPUs without AMX takes 2.6 times as long in bfloat16 as in float32, casts included. A `model`
    that computes activations again keeps it: torch's checkpoints would compute them without this block.
    """
    again = any(getattr(module, "grad_checkpointing", False) for module in model.modules())
    attention = nullcontext() if again or device.type != "cpu" else _AttentionInFloat()
    with torch.autocast(device.type, dtype=torch.bfloat16), attention:
        yield


class _AttentionInFloat(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value, *rest = args
        with torch.autocast("cpu", enabled=False):
            made: Tensor = func(query.float(), key.float(), value.float(), *rest, **(kwargs or {}))
        return made.to(query.dtype)
