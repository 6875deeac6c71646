"""What `stage1 store` does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from stage1.errors import ConfigError, MissingError
from stage1.store import ImageStore, open_store

_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_DIGEST = re.compile(r"[0-9a-f]{64}")


def verify_store(place: str, head: str) -> tuple[dict[str, Any], Callable[[Any], list[str]]]:
    """The document of `stage1 store verify`, and what makes lines of it."""
    if head and not _DIGEST.fullmatch(head):
        raise ConfigError(f"--head {head}: is no digest; `stage1 store info` prints one (64 hexadecimal digits)")
    with open_store(place, record=False) as store:
        found = store.verify(head)
        name = store.name
    document = {
        "store": name,
        "ok": found.ok,
        "entries": found.entries,
        "head": found.head,
        "anchored": found.anchored,
        "erased": found.erased,
        "kinds": found.kinds,
        "faults": [{"entry": fault.seq, "what": fault.what} for fault in found.faults],
    }
    return document, _verify_lines


def _verify_lines(document: dict[str, Any]) -> list[str]:
    if not document["ok"]:
        # The first fault in one line; the others below it.
        first, *others = [f"entry {fault['entry']}: {fault['what']}" for fault in document["faults"]]
        return [f"CHANGED  {document['store']}  {first}", *others]
    against = "it holds the noted head" if document["anchored"] else "compared with itself alone; see --head"
    return [f"ok  {document['store']}  {document['entries']} entries, head {document['head']}; {against}"]


def store_document(place: str) -> dict[str, Any]:
    """Counts and head of a store."""
    with open_store(place, record=False) as store:
        own = ("pending", "known", "damaged")  # of a process that records
        counts = {name: number for name, number in store.counts().items() if name not in own}
        return {"store": store.name, "head": store.head(), **counts}


def info_lines(document: dict[str, Any]) -> list[str]:
    return [f"{name:<12} {value}" for name, value in document.items()]


def export_store(place: str, output: Path, what: str) -> str:
    with open_store(place, record=False) as store:
        done = store.export(output, cast(Any, what))
    return f"{done.path}: {done.rows} {what}"


def delete_from_store(place: str, request: str, image: str, who: str, why: str, images: Path | None) -> str:
    """Erase in the store first: an image whose decision is gone is found by no one."""
    kept = None if images is None else _kept(images)
    with open_store(place, record=False) as store:
        gone = store.delete(request_id=request, image_digest=image, who=who, why=why)
    digests = {*gone.images, *([image] if image else [])}
    removed = 0 if kept is None else sum(kept.delete(digest) for digest in sorted(digests))
    text = f"erased: {gone.decisions} decisions, {gone.labels} labels, {gone.conflicts} refused doubles"
    return text if kept is None else f"{text}, {removed} images"


def prune_images(images: Path, older_than: str | None, keep: str | None) -> str:
    if older_than is None and keep is None:
        raise ConfigError("prune: say what may stay: --older-than 30d, --keep 10GB, or both")
    age = None if older_than is None else quantity(older_than, _SECONDS, "--older-than")
    size = None if keep is None else int(quantity(keep, _BYTES, "--keep"))
    done = _kept(images).prune(max_age_s=age, max_bytes=size)
    return f"removed {done.removed} images ({done.removed_bytes} bytes); {done.images} are kept ({done.bytes} bytes)"


def quantity(text: str, units: dict[str, int], option: str) -> float:
    """A number with a unit. Raises ConfigError, naming the option.

    >>> quantity("1.5h", {"h": 3600}, "--older-than")
    5400.0
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", text)
    if not found or found[2] not in units:
        raise ConfigError(f"{option} {text}: is a number with a unit ({', '.join(units)})")
    return float(found[1]) * units[found[2]]


def _kept(folder: Path) -> ImageStore:
    if not folder.is_dir():
        raise MissingError(f"{folder}: is no folder of kept images")
    return ImageStore(folder)
