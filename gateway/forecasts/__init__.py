"""What will be spent, and is what was spent unusual?

Forecasts chosen by back-test, and spend that stands out, with the cut that explains it. What is heavy is done
by a process of its own (`child.py`); only `library.py` knows the library of models, which may be missing.
"""
