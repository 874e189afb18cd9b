"""What holds for every unit test."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A shared machine stops for a second now and then: neither an example nor making one up has a deadline.
settings.register_profile(
    "unit", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("unit")
