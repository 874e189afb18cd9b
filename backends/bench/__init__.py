"""How fast is a pool? Drives one replica over concurrency, lengths and tasks, and writes its profile.

May import the pool's values, the launcher and the reference models' texts. Never imported by what serves
requests: a bench loads the pool that it measures.
"""
