"""Talks to models: connections, vLLM's wire format, streams, attempts and fallback.

May import protocols, backends.registry and errors. The only package that reaches an engine; never knows
money, tenants or policies. `external.py` is loaded by name, and only where a policy needs it.
"""
