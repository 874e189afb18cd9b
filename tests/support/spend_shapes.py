"""Spend of tenants that behave like tenants: made from a seed, by day or by hour."""

from __future__ import annotations

import math
import random

WEEK = (1.0, 1.05, 1.05, 1.0, 0.9, 0.35, 0.3)
"""Monday first."""
SHAPES = ("weekly", "growing", "stepping", "holidays", "sparse", "shrinking")
HOURS_PER_DAY = 24
FIRST_HOUR = 4 * HOURS_PER_DAY
"""1970-01-05, a Monday: hours since 1970."""


def daily(shape: str, days: int, *, seed: int) -> list[float]:
    """Spend by day, USD, the first a Monday."""
    rng = random.Random(f"{shape}{seed}")
    level = rng.lognormvariate(3, 1)
    noise = rng.uniform(0.05, 0.3)
    step_at, step = rng.randrange(days // 3, days), rng.choice((0.5, 1.8, 2.5))
    growth = {"growing": rng.uniform(0.002, 0.02), "shrinking": -0.006}.get(shape, 0.0)
    holidays = {rng.randrange(days) for _ in range(days // 25)}
    found = []
    for day in range(days):
        value = level * WEEK[day % 7] * math.exp(growth * day) * rng.lognormvariate(0, noise)
        if shape == "stepping" and day >= step_at:
            value *= step
        if shape == "holidays" and day in holidays:
            value *= 0.2
        if shape == "sparse" and rng.random() < 0.6:
            value = 0.0
        found.append(value)
    return found


def hourly(days: int, *, seed: int, noise: float, level: float = 5.0) -> list[float]:
    """Quiet spend by hour, USD, the first hour that of a Monday: day and week, noise, and nothing unusual."""
    rng = random.Random(seed)
    return [
        level
        * WEEK[hour // HOURS_PER_DAY % 7]
        * (1 + 0.8 * math.sin((hour % HOURS_PER_DAY - 8) / HOURS_PER_DAY * 2 * math.pi))
        * rng.lognormvariate(0, noise)
        for hour in range(days * HOURS_PER_DAY)
    ]
