"""Who is who in a FOCUS file? The settings' group `finance` and the policy's external targets say it."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from gateway.ledger.focus_terms import FocusTerms
from gateway.routing.policy import ExternalTarget
from gateway.settings import FinanceSettings


def focus_names(finance: FinanceSettings, external: Mapping[str, ExternalTarget]) -> FocusTerms:
    """Names for the columns; an external target's publisher is its provider, or its server's name."""
    return FocusTerms(
        organisation_id=finance.organisation_id,
        organisation=finance.organisation,
        issuer=finance.issuer,
        region_id=finance.region_id,
        region=finance.region,
        publishers={
            name: target.provider or urlsplit(target.api_base).hostname or name
            for name, target in external.items()
        },
    )
