"""Whose FOCUS file is it, and of which version and side? What the ledger does not know of itself.

Names come from the settings' group `finance`; publishers of external targets from the policy file. They
travel with the export to whichever process writes it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from gateway.errors import InvalidRequest

VERSIONS = ("1.2", "1.4")
SIDES = ("demand", "supply")


class FocusTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in every row, and what the rows are of."""

    version: Literal["1.2", "1.4"] = "1.2"
    side: Literal["demand", "supply"] = "demand"
    """demand: what tenants are charged; supply: what the fleet's pool-hours cost."""
    organisation_id: str = "organisation"
    organisation: str = "Organisation"
    issuer: str = "Tollgate"
    """The platform's legal name: provider and issuer of invoices in one."""
    region_id: str | None = None
    region: str | None = None
    publishers: dict[str, str] = {}
    """Of targets outside the company: whose model it is."""


def focus_terms(version: str, side: str, *, names: FocusTerms) -> FocusTerms:
    """Terms as people choose them.

    Raises:
        InvalidRequest: no such version or side.
    """
    if version not in VERSIONS:
        raise InvalidRequest(f"--focus-version is {' or '.join(VERSIONS)}, not {version[:40]!r}.")
    if side not in SIDES:
        raise InvalidRequest(f"--side is {' or '.join(SIDES)}, not {side[:40]!r}.")
    return msgspec.structs.replace(names, version=version, side=side)
