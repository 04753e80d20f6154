"""Whole data sets: rows are read, scored and stored, in this process, on the ranks of a job, or in a cluster.
It may import star and everything below it.
Start with run.py: it reads rows (rows.py) and lets an engine (engines.py) score (scorer.py) and store them (store.py).
"""
