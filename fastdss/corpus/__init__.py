"""Whole data sets: rows are read, scored and stored, in this process, on ranks or in a cluster.
It may import star and all below.
Start with run.py, which drives rows.py -> scorer.py -> store.py through one of engines.py.
"""
