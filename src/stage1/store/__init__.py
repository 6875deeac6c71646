"""Every decision once, every label with who and when, in a chain that shows any change: SQLite or PostgreSQL.

`open_store(url)` is the way in. A decision is safe when `Store.record` returns: it stands in the spool, on disk, and a
thread brings it to the database, which may be away for a while. docs/STORE.md says what is kept and what can be proved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stage1.late import names

__all__ = [
    "DecisionEvent",
    "ImageStore",
    "LabelEvent",
    "Store",
    "StoredDecision",
    "StoredLabel",
    "Verification",
    "open_store",
]

if TYPE_CHECKING:
    from stage1.store.chain import Verification
    from stage1.store.event_store import Store
    from stage1.store.events import DecisionEvent, LabelEvent
    from stage1.store.image_store import ImageStore
    from stage1.store.opening import open_store
    from stage1.store.reading import StoredDecision, StoredLabel
else:
    __getattr__ = names(
        __name__,
        chain="Verification",
        events="DecisionEvent LabelEvent",
        image_store="ImageStore",
        opening="open_store",
        reading="StoredDecision StoredLabel",
        event_store="Store",
    )
