"""Which routers does finance work with at a month's end?"""

from __future__ import annotations

from gateway.admin import adjustments, periods, reconciliations, statements

FINANCE = (periods.router, statements.router, adjustments.router, reconciliations.router)
