"""Which pages are there, in which order, and by which key does one get there?"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.audit import Actor
from gateway.identity.roles import RULES

HOME = "/console"


@dataclass(frozen=True, slots=True)
class Section:
    """A page of the menu."""

    name: str
    title: str
    key: str
    """`g` and then this letter opens it."""

    @property
    def path(self) -> str:
        """Its address."""
        return HOME if self.name == "overview" else f"{HOME}/{self.name}"


SECTIONS = (
    Section("overview", "Overview", "o"),
    Section("spend", "Spend", "s"),
    Section("periods", "Periods", "p"),
    Section("budgets", "Budgets", "b"),
    Section("keys", "Keys", "k"),
    Section("traffic", "Traffic", "t"),
    Section("policies", "Policies", "y"),
    Section("pools", "Pools", "f"),
    Section("audit", "Audit", "a"),
    Section("me", "Your login", "m"),
)
"""Those that exist: a page enters with its part."""


def may(actor: Actor, method: str, template: str) -> bool:
    """Whether the actor's role may use a route, so that nobody is offered what would be refused."""
    return actor.role in RULES[method, template].roles
