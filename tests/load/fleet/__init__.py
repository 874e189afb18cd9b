"""What would a fleet of GPUs cost under each rule of sending requests to its pools?

`tests/load/fleet_simulation.py` is the program. `traffic` draws requests from traces, `pools` says what
hardware and engines do, `play` lets time pass, `blind`, `gateways` and `oracle` are the rules, `sustain`
finds what a fleet carries, `report` writes it down. Tollgate's part is its own code, not a model of it.
"""
