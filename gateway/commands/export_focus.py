"""Of which version and side is a FOCUS file, and whose names stand in it?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from gateway.commands.terminal import load_pool_files
from gateway.errors import InvalidRequest
from gateway.focus_names import focus_names
from gateway.ledger.focus_terms import FocusTerms, focus_terms
from gateway.routing.policy import load_policy
from gateway.settings import load_settings

FOCUS = "focus"


Version = Annotated[
    str,
    typer.Option(
        "--focus-version",
        help="1.2; or 1.4, which follows the specification's text and was not checked by machine rules",
    ),
]
Side = Annotated[
    str, typer.Option(help="demand: what tenants are charged; supply: what pool-hours cost (FOCUS only)")
]


@dataclass(frozen=True, slots=True)
class Focus:
    """What a FOCUS file is of."""

    version: Version = "1.2"
    side: Side = "demand"


def terms_of_focus(focus: Focus, file_format: str) -> FocusTerms:
    """Whose FOCUS file it is, by the settings and the policy file.

    Raises:
        InvalidRequest: no such version or side, or the format is another one.
        ConfigurationError: a file is wrong.
    """
    if not file_format.startswith(FOCUS):
        if focus != Focus():
            raise InvalidRequest("--focus-version and --side are of --format focus.")
        return FocusTerms()
    settings = load_settings()
    policy = load_policy(settings.policy, pools=load_pool_files(settings))
    return focus_terms(focus.version, focus.side, names=focus_names(settings.finance, policy.external))
