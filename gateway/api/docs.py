"""Where can people read and try the API? /docs, without a content delivery network.

FastAPI's own page loads Swagger UI from the internet, which a company's closed network does not reach; the
files come from the installed package fastapi-offline instead.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, Response

from gateway.errors import NotFound

ASSETS = "/docs/static"
_TYPES = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "favicon.png": "image/png",
}


def add_docs(app: FastAPI) -> None:
    """Serve /docs, its files and /openapi.json: plain routes, so that the guard stands before them too."""
    folder = files("fastapi_offline") / "static"

    async def asset(name: str) -> Response:
        if name not in _TYPES:
            raise NotFound("There is no such file.")
        headers = {"cache-control": "public, max-age=86400"}
        return Response((folder / name).read_bytes(), headers=headers, media_type=_TYPES[name])

    async def description() -> JSONResponse:
        return JSONResponse(app.openapi())

    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=f"{app.title}: API",
            swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{ASSETS}/favicon.png",
        )

    app.add_api_route("/docs", docs, include_in_schema=False)
    app.add_api_route(ASSETS + "/{name}", asset, include_in_schema=False)
    app.add_api_route("/openapi.json", description, include_in_schema=False)
