"""Who is calling, what may they do, and is there room for them now? Tenants, projects, API keys, limits.

May import db, errors, settings and telemetry; never routing or the ledger.
"""
