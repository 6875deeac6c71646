"""Where images come from: the kinds of source, what each says about its images, and the bytes of one."""

from stage1.sources.listing import Listing
from stage1.sources.quarantine import Quarantined
from stage1.sources.registry import SOURCES, Source

__all__ = ["SOURCES", "Listing", "Quarantined", "Source"]
