"""vLLM pools: which replicas exist, how loaded are they, how are they started?

May import the standard library, pydantic and httpx. Knows nothing of the gateway, of tenants or of money
beyond the USD figures that a pool file states. The request path reads `pool` and `registry` (and what their
values are made of) only.
"""
