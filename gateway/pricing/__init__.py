"""What does a token cost? Rates are pure integers; the book says which rates a target has at an instant.

Cards are what pool and policy files say (`catalog`), entries what finance says or litellm's map (`store`,
`litellm_map`). May import money, inference, backends.pool, db, paging, audit. Never asks who is asking.
"""
