"""Adapters: small trainable parts inside a frozen backbone; what they touch, how they are stored, how they merge.

LoRA    W + (alpha / r) B A             Hu et al. 2022
rsLoRA  W + (alpha / sqrt(r)) B A       Kalajdzievski 2023
DoRA    m (W + s B A) / ||W + s B A||   Liu et al. 2024, norms per output row
norm, bias: the backbone's own parameters of that kind, on any model (Zaken et al. 2022 for biases)
B starts at zero (DoRA: m at the row norms of W), so a fresh adapter changes nothing.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stage1.config import AdapterConfig
from stage1.errors import ConfigError, IntegrityError, MissingError
from stage1.extras import load
from stage1.model.backbone import Backbone
from stage1.model.weights import state_digest
from stage1.storage.files import digest_bytes, write_bytes

WEIGHTS = "adapter_model.safetensors"  # the file names of peft
SETTINGS = "adapter_config.json"
LOW_RANK = ("lora", "dora", "rslora")
# Last parts of names of linear layers in attention and MLP: timm's, then Hugging Face's.
TARGETS = (
    "qkv",
    "proj",
    "fc1",
    "fc2",
    "fc1_g",
    "fc1_x",
    "q_proj",
    "k_proj",
    "v_proj",
    "q",
    "k",
    "v",
    "kv",
    "qk",
    "wq",
    "wk",
    "wv",
    "proj_l",
    "proj_w",
    "linear",
    "query",
    "key",
    "value",
    "dense",
    "o_proj",
    "out_proj",
    "up_proj",
    "gate_proj",
    "down_proj",
    "weights_in",
    "weights_out",
)


@dataclass(slots=True)
class Adapted:
    """A backbone with its adapter in place: only the adapter's parameters have gradients.

    layers: names of the adapted layers (low rank) or parameters (norm, bias), inside the timm model.
    base: digest of the weights before the adapter, by which other backbones are recognised.
    """

    backbone: Backbone
    config: AdapterConfig
    layers: tuple[str, ...]
    base: str
    peft_model: Any = field(default=None, repr=False)

    @property
    def model(self) -> nn.Module:
        """The timm model inside the backbone."""
        return self.backbone.module.model

    @property
    def trainable(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @property
    def share(self) -> float:
        """Trainable parameters / all parameters of the adapted model, in 0..1."""
        return self.trainable / sum(p.numel() for p in self.model.parameters())


def adapt(backbone: Backbone, config: AdapterConfig, seed: int) -> Adapted:
    """Put an adapter into `backbone`, in place; `seed` alone decides its first weights.

    Until it is trained the features stay what they were (1e-5). The backbone's `fingerprint` stays that of its base.
    Raises ConfigError (kind none; nothing to adapt: names what the model has and which arms work), MissingError (peft).
    """
    model, base = backbone.module.model, state_digest(backbone.module.state_dict())
    model.requires_grad_(False)
    if config.kind in LOW_RANK:
        names = linear_targets(model, config, backbone.name)
        return Adapted(backbone, config, tuple(names), base, _inject(model, config, names, seed))
    if config.kind == "none":
        raise ConfigError("adapter.kind=none: nothing to adapt; use lora, dora, rslora, norm or bias")
    names = norm_parameters(model) if config.kind == "norm" else _bias_parameters(model)
    names = _of_last_blocks(model, names, config)
    if not names:
        raise ConfigError(f"adapter.kind={config.kind}: {backbone.name} has no such parameters; use another kind")
    parameters = dict(model.named_parameters())
    for name in names:
        parameters[name].requires_grad_(True)
    return Adapted(backbone, config, tuple(names), base)


def merge(adapted: Adapted) -> Backbone:
    """The backbone with the adapter added into its weights: plain timm layers again, with a fingerprint of its own.

    Features are as before (1e-4). `adapted` must not be used after this.
    """
    if adapted.peft_model is not None:
        adapted.peft_model.merge_and_unload()
    return adapted.backbone.renewed(f"{adapted.backbone.weights} + {adapted.config.kind}")


# ---- which layers ------------------------------------------------------------------------------------------------


def linear_targets(model: nn.Module, config: AdapterConfig, name: str = "model") -> list[str]:
    """Full names of the nn.Linear layers to adapt, in the model's order; found by looking, not by a table of models.

    Known names (TARGETS) or `config.targets`, inside the repeated blocks, of the last `config.blocks` blocks or all.
    Raises ConfigError where nothing matches: a ConvNet has no such layers, and the message says what works there.
    """
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    known = [path for path in linear if _last(path) in TARGETS and _block_of(path, linear) is not None]
    wanted = [path for path in linear if _last(path) in config.targets] if config.targets else known
    if not wanted:
        if config.targets:
            there = sorted({_last(path) for path in known}) or ["none"]
            raise ConfigError(
                f"adapter.targets={config.targets}: no such linear layer in {name}; it has {', '.join(there)}"
            )
        raise ConfigError(
            f"adapter.kind={config.kind}: {name} has no attention or MLP layers of linear kind (a ConvNet?); there "
            "adapter.kind=norm, adapter.kind=bias and images.unfreeze=last work"
        )
    if config.blocks is None:
        return wanted
    blocks = list(dict.fromkeys(block for path in linear if (block := _block_of(path, linear)) is not None))
    if config.blocks > len(blocks):
        raise ConfigError(f"adapter.blocks={config.blocks}: {name} has {len(blocks)}; leave it out for all")
    last = set(blocks[-config.blocks :])
    chosen = [path for path in wanted if _block_of(path, linear) in last]
    if not chosen:
        raise ConfigError(f"adapter.blocks={config.blocks}: none of {config.targets} in these blocks of {name}")
    return chosen


def left_out(model: nn.Module, names: Sequence[str]) -> dict[str, int]:
    """Last parts of names of the linear layers that are not among `names`, and how many there are of each."""
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    return layer_counts([path for path in linear if path not in set(names)])


def layer_counts(names: Sequence[str]) -> dict[str, int]:
    """How many of these full names end in each last part, in their order."""
    return dict(Counter(_last(path) for path in names))


def _last(path: str) -> str:
    return path.rsplit(".", 1)[-1]


def _block_of(path: str, linear: list[str]) -> str | None:
    """The innermost numbered module around `path` with linear layers of several known names: a transformer block."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        if parts[end - 1].isdigit():
            prefix = ".".join(parts[:end])
            inside = {_last(other) for other in linear if other.startswith(prefix + ".")}
            if len(inside & set(TARGETS)) >= 2:
                return prefix
    return None


def norm_parameters(model: nn.Module) -> list[str]:
    """Names of the weights and biases of all norm layers, in the model's order."""
    found = []
    for path, module in model.named_modules():
        if "norm" in type(module).__name__.lower() or isinstance(module, nn.modules.batchnorm._NormBase):
            found += [f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)]
    return found


def _bias_parameters(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters() if name.endswith(("bias", "_bias"))]


def _of_last_blocks(model: nn.Module, names: list[str], config: AdapterConfig) -> list[str]:
    if config.blocks is None:
        return names
    layers = layer_ids(model)
    return [name for name in names if layers[name] > max(layers.values()) - config.blocks]


def layer_ids(model: nn.Module, *, fine: bool = False) -> dict[str, int]:
    """Parameter name -> position from the input (0) to the output, by timm's own grouping of the model.

    fine: each block of a ConvNet apart (for learning rates), not each stage. The final norm belongs to the last block.
    A model for which timm has no grouping (MetaFormer) is grouped by the numbers in the names of its modules.
    """
    from timm.models import group_parameters

    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        return _numbered(model, depth=2 if fine else 1)
    layers = dict(group_parameters(model, matcher(coarse=not fine), reverse=True))
    top = max(layers.values())
    if top and not any(part.isdigit() for name, place in layers.items() if place == top for part in name.split(".")):
        # A norm or pooling behind the blocks that timm's patterns leave out: it counts with the last block.
        layers = {name: min(place, top - 1) for name, place in layers.items()}
    return layers


def _numbered(model: nn.Module, depth: int) -> dict[str, int]:
    """Parameter name -> position, by the first `depth` numbers in the name ("stages.2.blocks.1"), in the model's order.

    What has no number counts with what comes before it: a stem at 0, a final norm with the last block.
    """
    positions: dict[str, int] = {}
    layers, last = {}, 0
    for name, _ in model.named_parameters():
        parts = name.split(".")
        numbers = [place for place, part in enumerate(parts) if part.isdigit()][:depth]
        if numbers:
            last = positions.setdefault(".".join(parts[: numbers[-1] + 1]), len(positions) + 1)
        layers[name] = last
    return layers


# ---- peft --------------------------------------------------------------------------------------------------------


def _inject(model: nn.Module, config: AdapterConfig, names: list[str], seed: int) -> Any:
    """peft's wrapper around `model`, whose layers `names` it has replaced in place."""
    peft = load("peft", f"adapter.kind={config.kind} (norm and bias work without)")
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=names,
        bias="none",
        use_dora=config.kind == "dora",
        use_rslora=config.kind == "rslora",
    )
    with torch.random.fork_rng(devices=[]):  # peft draws A from the global generator
        torch.manual_seed(int.from_bytes(digest_bytes(f"{seed}:adapter".encode()).encode()[:7]))
        wrapped = peft.get_peft_model(model, settings)
    done = {path for path, module in model.named_modules() if hasattr(module, "lora_A")}
    if done != set(names):
        odd = sorted(done ^ set(names))
        raise ConfigError(
            f"adapter.kind={config.kind}: peft adapted {len(done)} of {len(names)} layers, e.g. not {odd[0]}"
        )
    model.eval()
    _check_used(model, names, config.kind)
    return wrapped


def _check_used(model: nn.Module, names: list[str], kind: str) -> None:
    """Some models read `layer.weight` and never call the layer (EVA's attention): an adapter there would do nothing."""
    config = getattr(model, "pretrained_cfg", None)
    if config is None:  # no timm model: Hugging Face's call their layers
        return
    called: set[str] = set()
    handles = [
        module.register_forward_hook(lambda *_, path=path: called.add(path))
        for path, module in model.named_modules()
        if path in set(names)
    ]
    side = getattr(getattr(model, "patch_embed", None), "img_size", None) or config["input_size"][-2:]
    try:
        with torch.inference_mode():
            model(torch.zeros(1, 3, *side, device=next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    unused = [name for name in names if name not in called]
    if unused:
        raise ConfigError(
            f"adapter.kind={kind}: {unused[0]} is never called as a layer, so {len(unused)} adapters would do nothing; "
            "set adapter.targets to the others, or use norm or bias"
        )


# ---- files -------------------------------------------------------------------------------------------------------


def adapter_state(adapted: Adapted) -> dict[str, Tensor]:
    """The adapter's tensors alone; low rank: by the names that peft's files use."""
    if adapted.peft_model is None:
        parameters = dict(adapted.model.named_parameters())
        return {name: parameters[name].detach() for name in adapted.layers}
    from peft import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(adapted.peft_model))


def save_adapter(adapted: Adapted, folder: str | os.PathLike[str]) -> None:
    """Write the adapter alone: adapter_model.safetensors and, for low rank, peft's adapter_config.json.

    `PeftModel.from_pretrained(timm_model, folder)` reads the low-rank kinds too. What it was made for (config, digest
    of the base weights, backbone's name and fingerprint) is in the metadata of the tensors' file.
    """
    from safetensors.torch import save

    folder = Path(folder)
    if adapted.peft_model is not None:
        settings = adapted.peft_model.peft_config["default"].to_dict()
        values = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
        values["inference_mode"] = True
        write_bytes(folder / SETTINGS, (json.dumps(values, indent=2, sort_keys=True, default=str) + "\n").encode())
    about = {
        "config": adapted.config.model_dump(mode="json"),
        "base": adapted.base,
        "backbone": adapted.backbone.name,
        "fingerprint": adapted.backbone.fingerprint,
    }
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in adapter_state(adapted).items()}
    write_bytes(folder / WEIGHTS, save(tensors, metadata={"format": "pt", "stage1": json.dumps(about, sort_keys=True)}))


def load_adapter(backbone: Backbone, folder: str | os.PathLike[str]) -> Adapted:
    """Put the adapter in `folder` into `backbone`, in place, its parameters trainable.

    Raises MissingError (no adapter there, peft), IntegrityError (damaged; made for other weights, both named).
    """
    path = Path(folder) / WEIGHTS
    tensors, about = _read(path)
    base = state_digest(backbone.module.state_dict())
    if about["base"] != base:
        raise IntegrityError(
            f"{path}: made for backbone {about['backbone']!r} with weights {about['base'][:12]}, this is"
            f" {backbone.name!r} with {base[:12]}; load the backbone that it was trained on"
        )
    adapted = adapt(backbone, AdapterConfig(**about["config"]), seed=0)
    put_state(adapted, tensors, str(path))
    return adapted


def put_state(adapted: Adapted, tensors: Mapping[str, Tensor], where: str) -> None:
    """Replace the adapter's tensors by those of `adapter_state`. Raises IntegrityError where names or shapes differ."""
    expected = adapter_state(adapted)
    odd = next(iter(sorted(set(expected) ^ set(tensors))), None)
    odd = odd or next((name for name, value in expected.items() if tensors[name].shape != value.shape), None)
    if odd is not None:
        raise IntegrityError(f"{where}: {odd} does not fit this backbone and adapter; train it again")
    if adapted.peft_model is not None:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(adapted.peft_model, dict(tensors))
        return
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if name in tensors:
                parameter.copy_(tensors[name])


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import safe_open

    if not path.is_file():
        raise MissingError(f"{path}: no adapter there; give the folder that holds it")
    try:
        with safe_open(path, framework="pt") as stored:
            about = json.loads(stored.metadata()["stage1"])
            tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118 (not a mapping)
        AdapterConfig(**about["config"])
    except Exception as error:  # safetensors, json, pydantic and missing keys: the remedy is the same
        raise IntegrityError(
            f"{path}: no adapter that this version wrote ({type(error).__name__}); restore or train it again"
        ) from error
    return tensors, about
