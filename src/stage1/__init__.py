"""Stage-1 Pro: train the first stage of an image-classification cascade and certify when it may answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stage1.version import __version__ as __version__

__all__ = ["Scores", "Stage1Policy", "fit_policy", "load_bundle", "load_policy", "run"]

if TYPE_CHECKING:
    from stage1.commands.run import run
    from stage1.inference import load_bundle
    from stage1.integrations.scikit import Stage1Policy
    from stage1.policy import fit_policy, load_policy
    from stage1.scores import Scores

_HOME = {
    "Scores": "stage1.scores",
    "Stage1Policy": "stage1.integrations.scikit",
    "fit_policy": "stage1.policy",
    "load_policy": "stage1.policy",
    "load_bundle": "stage1.inference",
    "run": "stage1.commands.run",
}


def __getattr__(name: str) -> Any:
    # Lazy (PEP 562): `import stage1` stays under 0.3 s and never imports torch.
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'stage1' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
