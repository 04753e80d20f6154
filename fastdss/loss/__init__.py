"""The loss wing: from hidden states and a head's weight to loss and gradients, a chunk of rows at a time.
It may import kernels and nothing else of fastdss.
Start with functional.py, which holds what users call; inputs.py makes a LossCall of it, and reduce.py evaluates that.
objective.py derives every gradient, exponentials.py the form of it that needs no dZ. Two drivers run the GEMMs: kept.py
where backward finds the exponentials kept, else chunked.py, as an op of ops.py.
"""
