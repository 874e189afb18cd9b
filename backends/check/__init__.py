"""Room: is a pool file right before anything is started with it?

Owns: the verdict on a pool file and what it rests on (vLLM itself or a snapshot of its flags), obsolete
arguments and their translation, whether the pool fits in memory, known traps.
Does not know: running replicas, prices, tenants. `gateway.commands.pools_check` prints what is found here.
"""
