"""What may stand where in a policy's YAML? Its JSON schema, by which editors complete and check it. Pure."""

from __future__ import annotations

import functools
import json
from typing import Any

from gateway.routing.policy import PolicyFile


@functools.cache
def schema_text() -> str:
    """The schema as it is kept in `policies/schema.json`."""
    schema: dict[str, Any] = PolicyFile.model_json_schema(mode="validation")
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tollgate routing policy",
        **{name: value for name, value in schema.items() if name != "title"},
    }
    return json.dumps(schema, indent=1) + "\n"
