"""Which routers does finance work with at a month's end?"""

from __future__ import annotations

from gateway.admin import adjustments, periods, reconciliations

FINANCE = (periods.router, adjustments.router, reconciliations.router)
