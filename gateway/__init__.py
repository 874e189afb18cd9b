"""Tollgate's gateway: one OpenAI-compatible endpoint in front of a company's own vLLM pools.

Imports fall downward only: cli → app → api/admin/console → pipeline → the rooms → pricing → values.
Read `pipeline.py` first: it is the order of one request, and nothing else.
"""
