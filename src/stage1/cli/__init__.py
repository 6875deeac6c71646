"""The command line, thin: parse, call, print. Results on stdout, everything else on stderr."""

from __future__ import annotations

import os
import sys
import warnings

# Each registers its commands, in the order in which --help shows them.
from stage1.cli import run, stages, bundle, plan  # isort: skip
from stage1.cli import challenge  # isort: skip
from stage1.cli import streetvision  # isort: skip
from stage1.cli import reward  # isort: skip
from stage1.cli import cascade  # isort: skip
from stage1.cli import serve  # isort: skip
from stage1.cli import store  # isort: skip
from stage1.cli.edge import guarded
from stage1.cli.options import app, asked_for

__all__ = [
    "app",
    "bundle",
    "cascade",
    "challenge",
    "main",
    "plan",
    "reward",
    "run",
    "serve",
    "stages",
    "store",
    "streetvision",
]


def main() -> None:
    """Entry point: every error becomes one line on stderr and the exit code of DESIGN.md."""
    # Looking for plugins, pydantic reads the list of every package that is installed: longer than all our checks take.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # Pillow warns of what `images.decode` refuses or knows; each file gets one line, ours.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    sys.exit(guarded(asked_for(app, sys.argv[1:])))
