"""Where can people read and try the API? /docs, without a content delivery network.

FastAPI's own page loads Swagger UI from the internet, which a company's closed network does not reach; the
files come from the installed package fastapi-offline instead.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, Response

from gateway.errors import NotFound

ASSETS = "/docs/static"
_TYPES = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "favicon.png": "image/png",
}


_FOLDER = files("fastapi_offline") / "static"


def add_docs(app: FastAPI) -> None:
    """Serve /docs, its files and /openapi.json: plain routes, so that the guard stands before them too.

    They reach the app through the request. FastAPI remembers endpoint functions for as long as the process
    lives (`fastapi.dependencies.models`): one that enclosed its app would keep it and all its services.
    """
    app.add_api_route("/docs", _docs, include_in_schema=False)
    app.add_api_route(ASSETS + "/{name}", _asset, include_in_schema=False)
    app.add_api_route("/openapi.json", _description, include_in_schema=False)


async def _asset(name: str) -> Response:
    if name not in _TYPES:
        raise NotFound("There is no such file.")
    headers = {"cache-control": "public, max-age=86400"}
    return Response((_FOLDER / name).read_bytes(), headers=headers, media_type=_TYPES[name])


async def _description(request: Request) -> JSONResponse:
    return JSONResponse(request.app.openapi())


async def _docs(request: Request) -> HTMLResponse:
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title=f"{request.app.title}: API",
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon.png",
    )
