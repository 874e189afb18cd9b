"""How does a client speak? The data plane, under /v1, and the health pages.

May import the pipeline, protocols and the rooms' read functions; never SQL, policy grammar or litellm.
"""
