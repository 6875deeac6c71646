"""The schema files of the wheel, made from the types of the documents.

`python tools/schemas.py write` makes src/stage1/schemas/*.schema.json anew; `check` names those that differ from what
would be written, and ends with 1 where there is one.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[1] / "src"
SCHEMAS = SOURCE / "stage1" / "schemas"


def document_kinds() -> list[Any]:
    """Every DocumentKind that a file of the package makes, by name."""
    from stage1.storage.documents import DocumentKind

    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        if " = DocumentKind(" in path.read_text(encoding="utf-8"):
            name = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
            kinds = [kind for kind in vars(importlib.import_module(name)).values() if isinstance(kind, DocumentKind)]
            found |= {kind.name: kind for kind in kinds}
    return [found[name] for name in sorted(found)]


def schema_text(kind: Any) -> str:
    """The schema file of a kind."""
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema", **_plain(_described(kind))}
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def _described(kind: Any) -> dict[str, Any]:
    """The JSON schema with the text below each key, which checkers of documents do without."""
    from pydantic import TypeAdapter

    from stage1.storage.documents import Document

    settings: Any = Document.__pydantic_config__
    settings["use_attribute_docstrings"] = True
    try:
        made: dict[str, Any] = TypeAdapter(kind.type).json_schema()
        return made
    finally:
        del settings["use_attribute_docstrings"]


def _plain(schema: Any) -> Any:
    """A schema of pydantic without the titles that repeat names, and with patterns of keys that are binding."""
    if isinstance(schema, list):
        return [_plain(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = dict(schema)
    if isinstance(kept.get("title"), str):
        del kept["title"]
    if len(kept.get("patternProperties", ())) == 1 and "additionalProperties" not in kept:
        [(pattern, value)] = kept.pop("patternProperties").items()
        kept |= {"propertyNames": {"pattern": pattern}, "additionalProperties": value}
    return {name: _plain(part) for name, part in kept.items()}


def differing() -> list[str]:
    """Names of the schema files that are not what `write` would write: other words, missing, or of no type."""
    made = {f"{kind.name}.schema.json": schema_text(kind) for kind in document_kinds()}
    there = {path.name: path.read_text(encoding="utf-8") for path in SCHEMAS.glob("*.schema.json")}
    return sorted(name for name in made | there if made.get(name) != there.get(name))


def main(arguments: list[str]) -> int:
    if arguments == ["write"]:
        for kind in document_kinds():
            (SCHEMAS / f"{kind.name}.schema.json").write_text(schema_text(kind), encoding="utf-8")
        return 0
    if arguments == ["check"]:
        wrong = differing()
        for name in wrong:
            print(f"src/stage1/schemas/{name}: not made from its type; run `python tools/schemas.py write`")
        return int(bool(wrong))
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.path.insert(0, str(SOURCE))
    sys.exit(main(sys.argv[1:]))
