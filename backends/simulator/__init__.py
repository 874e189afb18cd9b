"""What would vLLM do with this load? A discrete-event model of replicas, calibrated from a pool's profile.

Pure Python, no I/O, no clock of its own: the same input and seed give the same result. `calibration` turns a
profile into what `replica` (one engine) and `fleet` (several, or a closed loop) simulate. How far it is from
real vLLM is measured by `tests/load/simulator_error.py`.
"""
