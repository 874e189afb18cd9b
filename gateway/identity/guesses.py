"""May another secret be tried, and is it the right one?

Wrong secrets are counted by the network they come from and by the name they are for, in this process and
bounded, wherever a secret is typed: at the login, and where a person gives the old password for a new one.
Nothing is stored.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict

from gateway.clock import Clock
from gateway.errors import RateLimited
from gateway.identity.passwords import PasswordCheck

FAILURES_MAX = 10
"""So many wrong secrets from one network within FAILURES_WINDOW_S, then no more tries until it is over."""
NAME_FAILURES_MAX = 50
"""The same for one name from all networks together: many, so that nobody is locked out by a neighbour."""
FAILURES_WINDOW_S = 300.0
FAILURE_DELAY_S = 0.5
"""A wrong secret is answered so late."""
REMEMBERED_MAX = 4096
"""Networks that are remembered; the oldest are forgotten first."""

_IPV6_NETWORK_BITS = 64
"""One subscriber's addresses: whoever has one has all of them."""


class FailedLogins:
    """How often did each network, or each name, come with a wrong secret lately?"""

    def __init__(self, failures_max: int = FAILURES_MAX) -> None:
        self._failures_max = failures_max
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def check(self, address: str, now_s: float) -> None:
        """Let the address try.

        Raises:
            RateLimited: it failed too often.
        """
        failures, since_s = self._failures.get(address, (0, now_s))
        wait_s = since_s + FAILURES_WINDOW_S - now_s
        if failures >= self._failures_max and wait_s > 0:
            raise RateLimited(
                f"Too many failed logins. Try again in {math.ceil(wait_s / 60)} min.",
                retry_after_s=math.ceil(wait_s),
            )

    def note(self, address: str, now_s: float) -> None:
        """One more failure; the first one starts the window."""
        failures, since_s = self._failures.pop(address, (0, now_s))
        if now_s >= since_s + FAILURES_WINDOW_S:
            failures, since_s = 0, now_s
        self._failures[address] = (failures + 1, since_s)
        if len(self._failures) > REMEMBERED_MAX:
            self._failures.popitem(last=False)

    def forget(self, address: str) -> None:
        """It knows the key."""
        self._failures.pop(address, None)


class Guesses:
    """Counts tries, and checks passwords, a few at a time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._networks = FailedLogins()
        self._names = FailedLogins(NAME_FAILURES_MAX)
        self._passwords: PasswordCheck | None = None

    def begin(self, address: str, name: str) -> None:
        """Let somebody try a secret, and count it as wrong until `succeeded` says that it was right.

        Counted before anything is waited for: tries in parallel gain nothing.

        Args:
            address: of whoever tries; empty: not known.
            name: for whom; empty: for nobody by name.

        Raises:
            RateLimited: the network, or everybody for that name, failed too often.
        """
        network, now_s = network_of(address), self._clock.monotonic_s()
        self._networks.check(network, now_s)
        if name:
            self._names.check(name, now_s)
            self._names.note(name, now_s)
        self._networks.note(network, now_s)

    def succeeded(self, address: str, name: str) -> None:
        """The secret was right: what was counted so far were slips."""
        self._networks.forget(network_of(address))
        self._names.forget(name)

    async def matches(self, password_hash: str | None, password: str) -> bool:
        """Whether it is the password; None never matches, as slowly as a wrong one."""
        if self._passwords is None:
            self._passwords = PasswordCheck()  # takes as long as a look at a password: at the first one
        return await self._passwords.matches(password_hash, password)


def network_of(address: str) -> str:
    """What failed logins are counted by: an IPv4 address, or the /64 of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), _IPV6_NETWORK_BITS), strict=False))
