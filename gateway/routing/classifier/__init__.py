"""Which task is a request that neither its sender nor a signal in it names? A small trained model.

`features` reads a request, `weights` loads the shipped file, `predict` applies it, `memory` remembers what a
system prompt is for. Pure and without dependencies; CARD.md says what it was trained on and how good it is.
The trainer is `gateway.routing.training`, which never runs in the gateway.
"""
