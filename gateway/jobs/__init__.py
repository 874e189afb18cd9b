"""What happens by itself? Work at intervals, by one process at a time.

May import the rooms and everything below. Never serves a request, and never writes without its lease.
"""
