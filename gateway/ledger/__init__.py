"""What was spent, and what may be spent? Holds, settlements, the spool, reports.

May import pricing.rates, money and db; never upstream or routing. Entries are only ever added.
"""
