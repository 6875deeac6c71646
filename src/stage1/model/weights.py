"""Weights from files and caches into a model: read as plain tensors, checked to fit, downloaded only where asked."""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stage1.errors import IntegrityError, MissingError
from stage1.storage.texts import require_stored

_FILE_NAMES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def state_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 of dtype, shape and bytes of the tensors in their order; names and `num_batches_tracked` do not count."""
    sha = hashlib.sha256()
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            sha.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
            sha.update(memoryview(flat.numpy()))
    return sha.hexdigest()


def weights_file(path: Path) -> Path:
    """The weights in a directory, or the file itself. Raises MissingError."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise MissingError(f"{path}: no such file or directory (backbone.weights)")
    found = [path / name for name in _FILE_NAMES if (path / name).is_file()]
    found = found or sorted(path.glob("*.safetensors"))
    if not found or (len(found) > 1 and found[0].name not in _FILE_NAMES):
        raise MissingError(
            f"{path}: {len(found)} weight files; name one with backbone.weights=FILE "
            f"(looked for {', '.join(_FILE_NAMES)} or a single *.safetensors)"
        )
    return found[0]


def cached_weights(name: str, cfg: Mapping[str, Any], *, download: bool = False) -> Path:
    """The weights of a timm model in the caches that timm itself fills; asks no network unless `download`.

    Raises MissingError: the model, where it looked, how to put weights there.
    """
    searched: list[str] = []
    repository = cfg.get("hf_hub_id")
    if repository:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.constants import HF_HUB_CACHE

        repository, _, revision = repository.partition("@")
        file_names = [cfg["hf_hub_filename"]] if cfg.get("hf_hub_filename") else []
        for file_name in (*file_names, *_FILE_NAMES):
            found = try_to_load_from_cache(repository, file_name, revision=revision or None)
            if isinstance(found, str):
                return Path(found)
        searched.append(f"{repository} in {HF_HUB_CACHE}")
    url = cfg.get("url") or ""
    if url and not url.endswith(".npz"):
        path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
        if path.is_file():
            return path
        searched.append(str(path))
    if download and repository:
        return _downloaded(name, repository, [*file_names, *_FILE_NAMES], revision or None)
    fetch = f"run `hf download {repository}` where there is a network, or " if repository else ""
    places = f"looked for {' and '.join(searched)}" if searched else "timm knows of none"
    raise MissingError(
        f"backbone {name!r}: no weights ({places}); {fetch}set backbone.weights=FILE or DIRECTORY, "
        "or use backbone.name=embedded"
    )


def _downloaded(name: str, repository: str, file_names: Sequence[str], revision: str | None) -> Path:
    """The first of these files that the hub has, into its cache. Raises MissingError: which, and why not."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import EntryNotFoundError

    why = f"it has none of {', '.join(file_names)}"
    for file_name in file_names:
        try:
            found = hf_hub_download(
                repository, file_name, revision=revision, cache_dir=HF_HUB_CACHE, endpoint=os.environ.get("HF_ENDPOINT")
            )
            return Path(found)
        except EntryNotFoundError:
            continue
        except Exception as error:  # of a network, a proxy, the hub or a disk: a dozen kinds
            why = " ".join(str(error).split())[:200] or type(error).__name__
            break
    raise MissingError(
        f"backbone {name!r}: {repository} cannot be downloaded ({why}); set backbone.weights=FILE or DIRECTORY, or"
        " use backbone.name=embedded"
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth, .pt or .bin file (weights_only). Raises IntegrityError, MissingError."""
    if not path.is_file():
        raise MissingError(f"{path}: no such file with weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            require_stored(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling, zip and safetensors raise a dozen kinds; all mean the same to the user
        why = " ".join(str(error).split())[:160]
        raise IntegrityError(f"{path}: not readable as plain tensors ({why}); save it as .safetensors") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise IntegrityError(f"{path}: holds no mapping of names to tensors; save the state_dict alone")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def load_weights(model: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load a checkpoint in timm's or its authors' naming: nothing may be missing, only the classifier left over.

    Raises IntegrityError: tensors missing, unknown, of another shape, or with NaN or infinity.
    """
    # timm keeps the translation of the authors' checkpoints (names, position embeddings for another size) beside the
    # model. Loading through timm would accept missing tensors without a word where the classifier is dropped.
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        if translate is not None:
            state = translate(state, model)
        result = model.load_state_dict(state, strict=False)
    except (RuntimeError, KeyError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise IntegrityError(f"{where}: does not fit the model ({why})") from error
    missing = [name for name in result.missing_keys if not name.endswith("num_batches_tracked")]
    extra = [name for name in result.unexpected_keys if not name.startswith(tuple(_classifier_names(model)))]
    if missing or extra:
        raise IntegrityError(
            f"{where}: weights of another model ({len(missing)} tensors missing, e.g. {(missing or ['-'])[0]}; "
            f"{len(extra)} unknown, e.g. {(extra or ['-'])[0]})"
        )
    bad = next((name for name, value in model.state_dict().items() if not _finite(value)), None)
    if bad is not None:
        raise IntegrityError(f"{where}: {bad} holds NaN or infinity; fetch the weights again")


def _classifier_names(model: nn.Module) -> Iterator[str]:
    names = model.pretrained_cfg.get("classifier") or ()
    yield from (f"{name}." for name in ((names,) if isinstance(names, str) else names))


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or math.isfinite(float(tensor.float().abs().sum()))


def copy_by_order(state: Mapping[str, Tensor], model: nn.Module, where: str) -> None:
    """Copy tensors into a model that names them otherwise but holds them in the same order.

    Checked before anything is copied: the count, and for each pair the shape, the dtype, and the last part of the name
    (weight, bias, running_mean, running_var: with it parameter or buffer). `num_batches_tracked` is left out.
    Raises IntegrityError naming the first pair that differs.
    """
    parameters = {name for name, _ in model.named_parameters()}
    source = [(name, tensor) for name, tensor in state.items() if not name.endswith("num_batches_tracked")]
    target = [(name, tensor) for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")]
    if len(source) != len(target):
        raise IntegrityError(f"{where}: {len(source)} tensors, the model has {len(target)}; these are other weights")
    for (name, tensor), (own, place) in zip(source, target, strict=True):
        last = name.rsplit(".", 1)[-1]
        if (
            tensor.shape != place.shape
            or tensor.dtype != place.dtype
            or last != own.rsplit(".", 1)[-1]
            or (own in parameters) == last.startswith("running_")
        ):
            raise IntegrityError(
                f"{where}: {name} {tensor.dtype} {list(tensor.shape)} does not fit "
                f"{own} {place.dtype} {list(place.shape)}; these are other weights"
            )
    with torch.no_grad():
        for (_, tensor), (_, place) in zip(source, target, strict=True):
            place.copy_(tensor)
