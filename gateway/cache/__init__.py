"""Have we answered this already?

May import values only; never knows what an answer costs.
"""
