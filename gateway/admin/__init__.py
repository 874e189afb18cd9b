"""How do people steer it? The control plane's JSON, under /admin/v1.

May import the domain rooms' public functions; holds no rules and no SQL of its own.
"""
