"""Who is calling, and what may they do? Tenants, projects, API keys.

May import db, errors, settings and telemetry; never routing or the ledger.
"""
