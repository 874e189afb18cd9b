"""What if? Recorded requests under another policy, another price, another fleet.

Answers from the ledger's attempts and from receipts, slowly and carefully; never on the request path, which
may not import it. Owns no table and writes none.
"""
