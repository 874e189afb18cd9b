"""Who is told that money runs out or is spent unusually, and is nothing lost on the way?

An outbox in the database: what is to be told is written there once, and delivered to every webhook and by
mail until it is taken, at least once and always under the same id.
"""
