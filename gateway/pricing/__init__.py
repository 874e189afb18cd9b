"""What does a token cost? Rates are pure integers; the catalog says which rates a target has now.

May import money, inference, backends.pool, db. Never asks who is asking.
"""
