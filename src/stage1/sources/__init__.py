"""Where images come from: the kinds of source, what each says about its images, and the bytes of one."""

from typing import TYPE_CHECKING

from stage1.late import names

if TYPE_CHECKING:
    from stage1.sources.listing import Listing
    from stage1.sources.quarantine import Quarantined
    from stage1.sources.registry import SOURCES, Source
else:
    __getattr__ = names(
        __name__,
        listing="Listing",
        quarantine="Quarantined",
        registry="SOURCES Source",
    )

__all__ = ["SOURCES", "Listing", "Quarantined", "Source"]
