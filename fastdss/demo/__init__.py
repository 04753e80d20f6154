"""``fastdss demo``: the whole method on a real, small model, and a page of what was seen.
It may import everything.
Start with run.py; arms.py are the ways of training that are compared; expectations.py holds the paper against them.
"""
