"""What does /openapi.json say of the data plane, which FastAPI never sees?

The raw door's paths are added to the generated document from its own table, so the two cannot drift.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from gateway.api.edge import ROUTES

_SUMMARIES = {
    "/v1/chat/completions": "Chat completion, OpenAI's format, plain or streamed",
    "/v1/completions": "Text completion, OpenAI's format, plain or streamed",
    "/v1/models": "The model aliases of the policy",
}
_TASK_HEADER = {
    "name": "x-tollgate-task",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "the task type, which wins over detection",
}


def describe_data_plane(app: FastAPI) -> None:
    """Make the app's OpenAPI document include the data plane."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title, version=app.version, summary=app.summary, routes=app.routes
            )
            document["paths"] = {**_data_plane(), **document.get("paths", {})}
            components = document.setdefault("components", {})
            components["securitySchemes"] = {"apiKey": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _data_plane() -> dict[str, Any]:
    return {
        path: {method.lower(): _operation(path, method) for method in methods}
        for path, methods in ROUTES.items()
    }


def _operation(path: str, method: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "tags": ["inference"],
        "summary": _SUMMARIES[path],
        "security": [{"apiKey": []}],
        "responses": {"200": {"description": "the answer; errors have OpenAI's shape"}},
    }
    if method == "POST":
        operation["parameters"] = [_TASK_HEADER]
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {"type": "object", "required": ["model"]}}},
        }
    return operation
