"""Which models may a client ask for? GET /v1/models: the policy's aliases that its key allows."""

from __future__ import annotations

import msgspec

from gateway.api.edge_types import EdgeRequest
from gateway.api.streaming import PlainResponse, Response
from gateway.routing.policy import Policy

_encode = msgspec.json.Encoder().encode


async def list_models(request: EdgeRequest) -> Response:
    """GET /v1/models."""
    policy = request.services.pipeline.routing.policy
    allowed = request.caller.allowed_models
    aliases = [alias for alias in policy.models if allowed is None or alias in allowed]
    return PlainResponse(
        200,
        [(b"content-type", b"application/json"), (b"x-request-id", request.request_id.encode())],
        _encode({"object": "list", "data": [model_card(policy, alias) for alias in aliases]}),
    )


def model_card(policy: Policy, alias: str) -> dict[str, object]:
    """One alias in OpenAI's form; `root` is there because vLLM's own load generator reads it."""
    return {
        "id": alias,
        "object": "model",
        "created": 0,
        "owned_by": "tollgate",
        "root": alias,
        "description": policy.descriptions[alias],
    }
