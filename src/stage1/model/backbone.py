"""Backbones: image tensor -> feature vector, by the embedded package or any timm model, with weights that are known."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stage1.config import BackboneConfig
from stage1.errors import ConfigError, IntegrityError, MissingError
from stage1.extras import load
from stage1.model.embedded import EMBEDDED, INNER_SCALE, VERSION, EmbeddedWeights
from stage1.model.origin import Origin, origin
from stage1.model.side_by_side import SideBySide, joint_origin
from stage1.model.weights import (
    cached_weights,
    copy_by_order,
    load_weights,
    read_weights,
    state_digest,
    weights_file,
)
from stage1.runtime.preprocessing import Preprocessing
from stage1.runtime.session import BatchLimit, Outputs
from stage1.storage.fields import Pooling
from stage1.storage.files import write_bytes

_NEAR = 33  # sizes around a refused one that are tried for the message: one more than the usual reduction of a ConvNet
_SMALLEST = 32  # of BackboneConfig.input_size


class Backbone:
    """A frozen model that makes features; a `stage1.runtime.session.Runner`.

    module: float32 [N, 3, S, S] -> float32 [N, dim], in eval mode, without gradients (on the CPU unless `to` moved it).
    name, pooling, dtype: as in BackboneConfig. preprocessing: what images must go through. dim: D of the features.
    weights: where they came from. origin: their licence and base model, as far as known.
    fingerprint: sha256 of weights, spec and library versions: only with equal ones may features be mixed.
    """

    def __init__(
        self, module: nn.Module, config: BackboneConfig, preprocessing: Preprocessing, origin: Origin, weights: str
    ) -> None:
        self.module = module.eval().requires_grad_(False)
        self.name = config.name
        self.pooling = getattr(module, "pooling", config.pooling)  # auto is settled there
        self.dtype = config.dtype
        self.preprocessing = preprocessing
        self.origin = origin
        self.weights = weights
        self.device = torch.device("cpu")
        self._limit = BatchLimit()
        self.dim = self._probe()
        self.fingerprint = self._fingerprint()

    @property
    def licence(self) -> str:
        """Licence of the weights, "unknown" where nothing says it."""
        return self.origin.licence

    parallel = 1  # torch spreads one batch over all cores itself

    def features(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features float32 [N, dim] of float32 [N, 3, S, S]; arithmetic in `dtype`, on `device`.

        Where memory runs out the batch is halved (down to 1), which is logged. Raises MemoryError below that.
        """
        return np.asarray(self.run(batch)[0])

    def run(self, batch: NDArray[np.float32]) -> Outputs:
        """`features` as the only output."""
        return self._limit.run(self._forward, batch) if len(batch) else self.empty()

    def empty(self) -> Outputs:
        return (np.zeros((0, self.dim), dtype=np.float32),)

    def to(self, device: str | torch.device) -> Backbone:
        """Move the module; "auto" is CUDA where there is one, else the CPU. Returns self."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.module.to(self.device)
        return self

    def renewed(self, weights: str) -> Backbone:
        """The same backbone after its module's weights were changed: frozen, with the fingerprint that they have now.

        weights: where they come from, in words. It shares the module; the old object must not be used any more.
        """
        other = copy.copy(self)
        other.module.eval().requires_grad_(False)
        other.weights = weights
        other.fingerprint = other._fingerprint()
        return other

    def save_weights(self, path: str | os.PathLike[str]) -> None:
        """Write the timm model's weights as one .safetensors file for `backbone.weights`; repeats to the byte."""
        from safetensors.torch import save

        state = self.module.model.state_dict()
        write_bytes(path, save({name: state[name].detach().cpu().contiguous().clone() for name in sorted(state)}))

    def _forward(self, batch: NDArray[np.float32]) -> Outputs:
        half = self.dtype == "bfloat16"
        cast = torch.autocast(self.device.type, dtype=torch.bfloat16) if half else nullcontext()
        with torch.inference_mode(), cast:
            features = self.module(torch.from_numpy(np.ascontiguousarray(batch)).to(self.device))
        return (features.float().cpu().numpy(),)

    def _probe(self) -> int:
        """Width D of the features. Raises ConfigError for a size that the model refuses, or whose edges it drops."""
        size = self.preprocessing.size
        try:
            # The second and third image are NaN in the last column and the last row: a pixel that the model uses
            # makes NaN of its features, whatever the weights. (A gradient would also be 0 behind a dead unit.)
            made = self._marked(size, ((slice(None), slice(-1, None)), (slice(-1, None), slice(None))))
        except (RuntimeError, AssertionError, ValueError) as error:
            patch, why = _patch_size(self.module.model), " ".join(str(error).split())[:160]
            sizes = _named(_multiples(size, patch)) if patch is not None and size % patch else "another size"
            raise ConfigError(
                f"backbone {self.name!r} does not run at input_size {size} ({why}); set backbone.input_size to {sizes}"
            ) from error
        if made.ndim != 2:
            shape = [1, *made.shape[1:]]
            raise ConfigError(f"backbone {self.name!r}: output of shape {shape}, not [N, D]; use another pooling")
        if made[1:].isfinite().all(dim=1).any() and made[0].isfinite().all():
            raise ConfigError(self._unseen(size))
        return int(made.shape[1])

    def _marked(self, size: int, places: Sequence[tuple[slice, slice]]) -> Tensor:
        """Outputs for a gray image and for one image per place (rows, columns) that is NaN there."""
        batch = torch.zeros(1 + len(places), 3, size, size)
        for row, place in enumerate(places, start=1):
            batch[row, :, place[0], place[1]] = torch.nan
        with torch.inference_mode():
            return self.module(batch)

    def _lost(self, size: int) -> int:
        """Columns at the right edge without influence on the features; all where the model fails at this size."""
        try:
            for strip in range(1, size):
                if not self._marked(size, [(slice(None), slice(-strip, None))])[1].isfinite().all():
                    return strip - 1
        except (RuntimeError, AssertionError, ValueError):
            return size  # so that no message advises this size
        return size

    def _unseen(self, size: int) -> str:
        """The sentence for a size at which the right and bottom edge have no influence on the features."""
        patch = _patch_size(self.module.model)
        if patch is not None:
            strip, near = size % patch, _multiples(size, patch)
        else:
            strip = self._lost(size)
            around = (range(size - 1, max(size - _NEAR, 1), -1), range(size + 1, size + _NEAR))
            near = [other for sizes in around for other in [next((n for n in sizes if self._lost(n) == 0), 0)]]
        return (
            f"backbone.input_size={size}: {self.name} never sees the last {strip} pixel(s) at the right and bottom edge"
            f" ({1 - (1 - strip / size) ** 2:.1%} of the image); set backbone.input_size to {_named(near)}"
        )

    def _fingerprint(self) -> str:
        spec = {
            "name": self.name,
            "pooling": self.pooling,
            "size": self.preprocessing.size,
            "dtype": self.dtype,
            "weights": state_digest(self.module.state_dict()),
            "torch": torch.__version__,
            "timm": timm.__version__,
        }
        return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()


def load_backbone(config: BackboneConfig, seed: int = 0, drop_path: float | None = None) -> Backbone:
    """The backbone that the config names, on the CPU. `seed` counts only for `random_weights`.

    drop_path: rate of stochastic depth where it is trained; None: timm's for this model. Nothing but training sees it.

    Raises ConfigError (unknown name, a pooling or size the model has not), MissingError (no weights: names the model,
    where it looked, how to put them there; nothing is downloaded unless config.download), IntegrityError (weights that
    do not fit).
    """
    first, *others = (_one(part, seed, drop_path) for part in _each(config))
    if not others:
        return first
    every = [first, *others]
    module = SideBySide([one.module for one in every], [one.preprocessing for one in every])
    source = " + ".join(one.weights for one in every)
    return Backbone(module, config, first.preprocessing, joint_origin([one.origin for one in every]), source)


def _each(config: BackboneConfig) -> Iterator[BackboneConfig]:
    """The config of each backbone that `name` joins by +; weights and their licence are of the first."""
    name, *others = config.names
    pooling = "pool" if others and config.pooling == "auto" else config.pooling
    first = config.model_copy(update={"name": name, "pooling": pooling})
    yield first
    for other in others:
        size = _own_size(first) if config.first_size is None else config.first_size
        free = {"weights": None, "licence": None, "base_model": None, "pooling": "pool", "input_size": size}
        yield first.model_copy(update={"name": other, **free})


def _own_size(config: BackboneConfig) -> int:
    packed = EMBEDDED.get(config.name)
    known = timm.get_pretrained_cfg(config.name if packed is None else packed.architecture)
    return int(known.input_size[-1])


def _one(config: BackboneConfig, seed: int, drop_path: float | None) -> Backbone:
    packed = EMBEDDED.get(config.name)
    if packed is not None and config.weights is None and not config.random_weights:
        model = _embedded_model(packed, drop_path)
        source = f"package {packed.distribution} {VERSION}"
    else:
        name = config.name if packed is None else packed.architecture
        path = None if config.random_weights else _weights(config, name)  # before time is spent on building
        model = _timm_model(name, config.first_size, seed, drop_path)
        if path is not None:
            load_weights(model, read_weights(path), str(path))
        source = f"untrained, seed {seed}" if path is None else str(path)
    return Backbone(_Pooled(model, config), config, _preprocessing(model, config), origin(config), source)


# ---- pooling -----------------------------------------------------------------------------------------------------


class _Pooled(nn.Module):
    """A timm model without its classifier, and how its last tokens or feature map become one vector."""

    def __init__(self, model: nn.Module, config: BackboneConfig) -> None:
        super().__init__()
        self.model = model
        packed = EMBEDDED.get(config.name)
        own: Pooling = "pool" if packed is None else "pool+inner"
        self.pooling = own if config.pooling == "auto" else config.pooling
        if self.pooling == "pool+inner" and packed is None:
            raise ConfigError(
                f"backbone.pooling=pool+inner: {config.name} is none of {', '.join(EMBEDDED)}; use auto or pool"
            )
        self.prefix = int(getattr(model, "num_prefix_tokens", 0))
        if "cls" in config.pooling and (self.prefix == 0 or getattr(model, "cls_token", None) is None):
            raise ConfigError(f"backbone.pooling={config.pooling}: {config.name} has no class token; use mean or pool")
        # Where a model normalises after pooling instead of before, the norm belongs to every way of pooling.
        norm = getattr(model, "fc_norm", None)
        self.norm = norm if isinstance(norm, nn.Module) else nn.Identity()
        self.channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"

    def forward(self, image: Tensor) -> Tensor:
        if self.pooling == "pool":
            return self.model(image)
        if self.pooling == "pool+inner":
            return self._with_inner(image)
        last = self.model.forward_features(image)
        if self.pooling == "cls":
            return self.norm(last[:, 0])
        if last.ndim == 4:
            return self.norm(last.mean(dim=(1, 2) if self.channels_last else (2, 3)))
        # Class token and registers come first; the mean is over patches only.
        mean = self.norm(last[:, self.prefix :].mean(dim=1))
        return mean if self.pooling == "mean" else torch.cat([self.norm(last[:, 0]), mean], dim=1)

    def _with_inner(self, image: Tensor) -> Tensor:
        """The forward pass of timm's EfficientNet; the last stage but one is pooled on the way: no second pass."""
        model = self.model
        *before, last = model.blocks
        inner = model.bn1(model.conv_stem(image))
        for stage in before:
            inner = checkpoint(stage, inner, use_reentrant=False) if model.grad_checkpointing else stage(inner)
        top = checkpoint(last, inner, use_reentrant=False) if model.grad_checkpointing else last(inner)
        own = model.forward_head(model.bn2(model.conv_head(top)))
        # The small number bounds the slope at 0, where a unit is dead: of gradients, and of rounding in another engine.
        return torch.cat([2 * torch.sqrt(own + 1e-4), INNER_SCALE * inner.mean(dim=(2, 3))], dim=1)


def _preprocessing(model: nn.Module, config: BackboneConfig) -> Preprocessing:
    data, fit = timm.data.resolve_model_data_config(model), config.first_fit
    size = config.first_size or data["input_size"][-1]
    kernel: Literal["bilinear", "bicubic"] = "bilinear" if data["interpolation"] == "bilinear" else "bicubic"
    share = (config.crop_pct or min(float(data["crop_pct"]), 1.0)) if fit == "center_crop" else 1.0
    return Preprocessing(size, fit, kernel, data["mean"], data["std"], crop_pct=share)


# ---- models and weights ------------------------------------------------------------------------------------------


def _patch_size(model: nn.Module) -> int | None:
    """Pixels of a patch's side, where the model cuts the image into patches that do not overlap; else None."""
    projection = getattr(getattr(model, "patch_embed", None), "proj", None)
    if not isinstance(projection, nn.Conv2d) or projection.kernel_size != projection.stride:
        return None
    return int(projection.stride[0])


def _multiples(size: int, patch: int) -> list[int]:
    """The multiples of `patch` next to `size`, below and above."""
    return [size // patch * patch, -(-size // patch) * patch]


def _named(sizes: Sequence[int]) -> str:
    return " or ".join(str(size) for size in sizes if size >= _SMALLEST) or "another size"


def _embedded_model(packed: EmbeddedWeights, drop_path: float | None) -> nn.Module:
    package = load(packed.package, f"backbone {packed.name!r}")
    path = Path(getattr(package, packed.holder).get_model_file_path())
    if not path.is_file():
        raise MissingError(f"{path}: the embedded backbone is not there; reinstall {packed.distribution}")
    model = timm.create_model(packed.architecture, pretrained=False, **_depth(drop_path))
    copy_by_order(read_weights(path), model, str(path))
    if state_digest(model.state_dict()) != packed.digest:
        raise IntegrityError(f"{path}: not the weights of package {VERSION}; reinstall {packed.distribution}")
    model.reset_classifier(0)
    return model


def _weights(config: BackboneConfig, name: str) -> Path:
    if config.weights is not None:
        return weights_file(Path(config.weights))
    _require_known(name)
    return cached_weights(name, timm.get_pretrained_cfg(name).to_dict(), download=config.download)


def _require_known(name: str) -> None:
    if timm.is_model(name):  # checks the part before the dot only
        try:
            timm.get_pretrained_cfg(name)
            return
        except RuntimeError:
            known = timm.list_pretrained(f"{name.split('.')[0]}.*")
    else:
        known = [*EMBEDDED, *timm.list_models()]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else "; `timm.list_models()` has the names"
    raise ConfigError(
        f"backbone.name: {name!r} is none of {', '.join(EMBEDDED)}, and no model of timm {timm.__version__}{hint}"
    )


def _timm_model(name: str, input_size: int | None, seed: int, drop_path: float | None) -> nn.Module:
    """An untrained timm model without classifier; transformers are built for `input_size`."""
    _require_known(name)

    def built(**options: Any) -> nn.Module:
        torch.manual_seed(_sub_seed(seed))
        return timm.create_model(name, pretrained=False, num_classes=0, **options, **_depth(drop_path))

    with torch.random.fork_rng(devices=[]):
        try:
            if input_size is None:
                return built()
            try:
                return built(img_size=input_size)
            except TypeError:  # a convolutional model: takes every size, knows no img_size
                return built()
        except TypeError as error:
            if drop_path is None or "drop_path_rate" not in str(error):
                raise
            raise ConfigError(
                f"images.drop_path={drop_path:g}: {name} has no stochastic depth; leave it out"
            ) from error
        except (RuntimeError, ValueError, AssertionError) as error:
            why = " ".join(str(error).split())[:160]
            raise ConfigError(f"backbone {name!r} cannot be built with input_size {input_size} ({why})") from error


def _depth(drop_path: float | None) -> dict[str, float]:
    return {} if drop_path is None else {"drop_path_rate": drop_path}


def drop_path_rates(model: nn.Module) -> list[float]:
    """Rates above 0 of the model's modules of stochastic depth, in its order."""
    found = [module for module in model.modules() if type(module).__name__.lower().startswith("droppath")]
    return [float(module.drop_prob) for module in found if module.drop_prob]


def _sub_seed(seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:backbone".encode()).digest()[:8]) % 2**63
