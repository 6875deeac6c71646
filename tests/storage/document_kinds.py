"""tools/schemas.py, and the kinds of documents that it finds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PATH = Path(__file__).parents[2] / "tools" / "schemas.py"
SPEC = importlib.util.spec_from_file_location("tools_schemas", PATH)
assert SPEC is not None
assert SPEC.loader is not None
schemas = importlib.util.module_from_spec(SPEC)
sys.modules["tools_schemas"] = schemas
SPEC.loader.exec_module(schemas)
KINDS = {kind.name: kind for kind in schemas.document_kinds()}
