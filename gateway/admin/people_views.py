"""How does a person look in JSON and at a terminal?"""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field

from gateway.admin.views import moment, optional_moment
from gateway.identity.people_store import PersonRecord
from gateway.identity.roles import Role


class PersonView(BaseModel):
    """Somebody who may log in, without the password."""

    id: str
    name: str
    role: Role
    logs_in_by: str = Field(description="`password`, or `oidc`: the company's own login")
    created_at: datetime
    password_set_at: datetime | None
    retired_at: datetime | None


def person_view(record: PersonRecord) -> PersonView:
    """For people and programs."""
    return PersonView(
        id=record.id,
        name=record.name,
        role=record.role,
        logs_in_by="password" if record.subject is None else "oidc",
        created_at=moment(record.created_at_ms),
        password_set_at=optional_moment(record.password_set_at_ms),
        retired_at=optional_moment(record.retired_at_ms),
    )
