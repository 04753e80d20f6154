"""The loss wing: from hidden states and a head's weight to loss and gradients, a chunk of rows at a time.
It may import kernels and nothing else of fastdss.
Start with functional.py, which holds what users call. objective.py derives every gradient; chunked.py runs the GEMMs.
"""
