"""Where can people read and try the API? /docs, without a content delivery network.

FastAPI's own page loads Swagger UI from the internet, which a company's closed network does not reach; the
files come from the installed package fastapi-offline instead.
"""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

ASSETS = "/docs/static"


def add_docs(app: FastAPI) -> None:
    """Serve /docs and its files."""
    app.mount(ASSETS, StaticFiles(packages=[("fastapi_offline", "static")]))

    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=f"{app.title}: API",
            swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{ASSETS}/favicon.png",
        )

    app.add_api_route("/docs", docs, include_in_schema=False)
