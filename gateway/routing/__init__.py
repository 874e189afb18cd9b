"""Where should a call go, and why? Task, policy, decision.

May import pricing.rates, backends.pool and values. `classify`, `policy` and `decide` do no I/O; never the
ledger.
"""
