"""What do people call the tenants, projects and keys that the ledger knows by their ids, and the other way?

The ledger may not know who they are; reports and exports are read by people.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncSession

from gateway.errors import NotFound
from gateway.identity.key_store import list_keys
from gateway.identity.store import tenant_names
from gateway.ledger.cuts import Filter
from gateway.ledger.evaluation import is_of_evaluation
from gateway.ledger.reports import PLATFORM_TENANT

Names = dict[str, dict[str, str]]
"""By dimension and id."""
_PATHS = "tenant/project"
"""Projects as they are written where their name alone is not enough."""


async def read_names(session: AsyncSession) -> Names:
    """What people call tenants, projects and keys, by id; projects of one name with their tenants'."""
    keys = await list_keys(session)
    tenants: dict[str, set[str]] = {}
    for key in keys:
        tenants.setdefault(key.project_name, set()).add(key.tenant_id)
    return {
        "tenant": await tenant_names(session),
        "project": {
            key.project_id: key.project_name
            if len(tenants[key.project_name]) == 1
            else f"{key.tenant_name}/{key.project_name}"
            for key in keys
        },
        _PATHS: {key.project_id: f"{key.tenant_name}/{key.project_name}" for key in keys},
        "key": {key.id: f"{key.name} ({key.id})" for key in keys},
    }


def with_ids(filters: Sequence[Filter], names: Names) -> tuple[Filter, ...]:
    """Filters whose tenants, projects and keys are ids, of those in people's words.

    Raises:
        NotFound: there is nobody of that name or id; says who is called alike.
    """
    return tuple(
        replace(each, values=tuple(found for value in each.values for found in _ids(each.name, value, names)))
        for each in filters
    )


def _ids(name: str, value: str, names: Names) -> list[str]:
    known = names.get(name)
    if known is None or value in {*known, PLATFORM_TENANT, ""} or is_of_evaluation(value):
        return [value]
    found = [key for key, shown in known.items() if value in {shown, shown.partition(" (")[0]}]
    if name == "project" and not found:
        found = [key for key, path in names.get(_PATHS, {}).items() if value == path]
    if not found:
        close = difflib.get_close_matches(value, list(known.values()), n=3)
        hint = f" Did you mean {' or '.join(repr(each) for each in close)}?" if close else ""
        raise NotFound(f"No {name} {value[:128]!r} for the filter {name}=….{hint}")
    return found
