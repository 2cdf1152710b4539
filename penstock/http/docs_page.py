"""`/docs`: the OpenAPI page, by a Swagger UI that is part of the package, so that it needs no other host.

The page allows no inline script and no other origin. Knows nothing of the document's content.
"""

from __future__ import annotations

import hashlib
from html import escape
from importlib.resources import files
from importlib.resources.abc import Traversable

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from penstock.errors import NotFound

_WEB = files("penstock") / "web"
_FILES: dict[str, tuple[Traversable, str]] = {
    "swagger-ui-bundle.js": (_WEB / "swagger" / "swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
    "swagger-ui.css": (_WEB / "swagger" / "swagger-ui.css", "text/css; charset=utf-8"),
    "favicon.png": (_WEB / "swagger" / "favicon-32x32.png", "image/png"),
    "start.js": (_WEB / "start.js", "text/javascript; charset=utf-8"),
}

# Swagger UI sets style attributes by itself and draws its icons from data: URLs; it evaluates nothing.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_SAFE = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "referrer-policy": "no-referrer",
}

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" type="image/png" href="docs/favicon.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui" data-openapi="{openapi}"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""


def docs_routes(openapi_url: str, title: str = "Penstock") -> APIRouter:
    """`/docs`, the files it needs, and `/`, which leads there. `openapi_url` is the document's path, from the root.

    Every address on the page is relative to it, so that it also works behind a proxy that adds a prefix.
    """
    page = _PAGE.format(title=escape(title), openapi=escape(openapi_url.removeprefix("/"))).encode()
    kept: dict[str, tuple[bytes, str]] = {}

    async def root(request: Request) -> Response:
        return Response(status_code=307, headers={"location": "docs", "cache-control": "no-cache"})

    async def docs(request: Request) -> Response:
        return Response(page, headers=_SAFE | {"cache-control": "no-cache"}, media_type="text/html")

    async def docs_file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _FILES:
            missing = NotFound("The docs page has no such file.")
            return Response(msgspec.json.encode(missing.envelope()), missing.status, media_type="application/json")
        source, media_type = _FILES[name]
        if name not in kept:  # read once, on first need: 2 MB that most processes never show
            data = source.read_bytes()
            kept[name] = data, f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        data, etag = kept[name]
        headers = _SAFE | {"cache-control": "public, max-age=86400", "etag": etag, "content-type": media_type}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers)

    router = APIRouter()
    router.add_route("/", root, methods=["GET"], include_in_schema=False)
    router.add_route("/docs", docs, methods=["GET"], include_in_schema=False)
    router.add_route("/docs/{name}", docs_file, methods=["GET"], include_in_schema=False)
    return router
