"""The contact sheet of a label audit: one page with the pictures of the suspects; no network, libraries or scripts."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from stage1.errors import DataError
from stage1.extras import load
from stage1.report.numbers import percent, whole


def contact_sheet(document: Mapping[str, Any], thumbnails: Sequence[bytes]) -> str:
    """HTML of a document of kind "label_audit". thumbnails: JPEG bytes of its suspects, in their order.

    The same input gives the same page. Raises DataError for another number of pictures, MissingError without jinja2.
    """
    suspects = document["suspects"]
    if len(thumbnails) != len(suspects):
        raise DataError(f"thumbnails: {len(thumbnails)} for {len(suspects)} suspects; one each")
    jinja2 = load("jinja2", "the contact sheet")
    # Autoescape without exception: file names and class names come from strangers.
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.PackageLoader("stage1.report"),
    )
    environment.filters |= {"pct": percent, "count": whole}
    pictures = ["data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii") for jpeg in thumbnails]
    pairs = [pair for pair in document["estimated"]["pairs"] if pair["count"]]
    page: str = environment.get_template("contact_sheet.html.j2").render(
        audit=document, pairs=pairs, suspects=list(zip(suspects, pictures, strict=True))
    )
    return page
