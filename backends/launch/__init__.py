"""From a pool's specification to running replicas: the command line, the processes, their guard.

May import `backends`, the standard library, pydantic and httpx. Never loaded by the request path: a gateway
that serves another machine's replicas has no use for it. The guard imports the standard library only.
"""
