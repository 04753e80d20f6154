"""``fastdss demo``: the whole method on a real, small model, and a page that shows the results.
It may import everything.
Start with run.py; arms.py lists the ways of training that are compared; expectations.py compares the results with what
the paper claims.
"""
