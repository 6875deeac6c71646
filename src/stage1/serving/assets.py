"""The server's page: files of the package, served as they are. No build step, nothing from elsewhere.

The page is a client of /v1 like any other: it holds no data, so it needs no key to load; what it asks for does.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request, Response

from stage1.serving.refusal import Refusal

router = APIRouter(include_in_schema=False)

_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "txt": "text/plain"}
# Scripts and styles of this server alone; pictures from it or made in the tab. Nobody may put the page into a frame.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@cache
def page_files() -> dict[str, bytes]:
    """Every file of the page by its path below serving/page, with "/" between the parts.

    A request is looked up here and never becomes a path on a disk.
    """
    found: dict[str, bytes] = {}
    todo = [("", files("stage1.serving") / "page")]
    while todo:
        before, folder = todo.pop()
        for entry in folder.iterdir():
            if entry.is_dir():
                todo.append((f"{before}{entry.name}/", entry))
            elif entry.name.rpartition(".")[2] in _KINDS:
                found[before + entry.name] = entry.read_bytes()
    return found


@router.get("/")
async def index(request: Request) -> Response:
    return _file(request, "index.html")


@router.get("/page/{name:path}")
async def page(request: Request, name: str) -> Response:
    return _file(request, name)


def _file(request: Request, name: str) -> Response:
    body = page_files().get(name)
    if body is None:
        raise Refusal(404, "not_found", "the page has no such file; it is at /")
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=_KINDS[name.rpartition(".")[2]] + "; charset=utf-8")
