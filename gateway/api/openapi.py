"""What does /openapi.json say that FastAPI does not know?

The raw door's paths are added to the generated document from its own table, and who may use a route from the
table of rules, so that neither can drift. Errors have one shape everywhere.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from gateway.api.edge import ROUTES
from gateway.api.receipts import PATH as RECEIPT
from gateway.identity.roles import RULES, Credential

_SUMMARIES = {
    "/v1/chat/completions": "Chat completion, OpenAI's format, plain or streamed",
    "/v1/completions": "Text completion, OpenAI's format, plain or streamed",
    "/v1/models": "The model aliases of the policy",
    RECEIPT: "What was done with a request, and what it cost",
}
_TASK_HEADER = {
    "name": "x-tollgate-task",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "the task type, which wins over detection",
}


_REQUEST_ID = {
    "name": "request_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string"},
    "description": "the answer's x-request-id; readable within a second after it",
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "what is wrong and what to do"},
                "type": {"type": "string", "enum": ["invalid_request_error", "server_error"]},
                "param": {"type": ["string", "null"], "description": "the field that is wrong"},
                "code": {"type": "string"},
            },
        }
    },
    "examples": [
        {
            "error": {
                "message": "No tenant 'acme'; `tollgate tenants list` shows the known ones.",
                "type": "invalid_request_error",
                "param": None,
                "code": "not_found",
            }
        }
    ],
}
_GENERATED_VALIDATION = ("HTTPValidationError", "ValidationError")


def describe(app: FastAPI) -> None:
    """Make the app's OpenAPI document complete."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title, version=app.version, summary=app.summary, routes=app.routes
            )
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    _say_who(operation, method.upper(), path)
            document["paths"] = {**_data_plane(), **document["paths"]}
            components = document.setdefault("components", {})
            components["securitySchemes"] = {
                "apiKey": {"type": "http", "scheme": "bearer"},
                "adminKey": {"type": "http", "scheme": "bearer", "description": "tga-…, with a role"},
            }
            schemas = components.setdefault("schemas", {})
            for name in _GENERATED_VALIDATION:
                schemas.pop(name, None)
            schemas["Error"] = _ERROR
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _say_who(operation: dict[str, Any], method: str, path: str) -> None:
    """Security, roles and errors of a route, as the table of rules has them."""
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's own shape; ours is 400
    responses["default"] = {
        "description": "what went wrong",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    rule = RULES.get((method, path))
    if rule is None or rule.credential is not Credential.ADMIN_KEY:
        return
    operation["security"] = [{"adminKey": []}]
    operation["x-tollgate-roles"] = sorted(rule.roles)
    who = f"Roles: {rule.roles_text()}."
    operation["description"] = f"{operation.get('description', '')}\n\n{who}".strip()


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
    if path == RECEIPT:
        operation["parameters"] = [_REQUEST_ID]
    if method == "POST":
        operation["parameters"] = [_TASK_HEADER]
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {"type": "object", "required": ["model"]}}},
        }
    return operation
