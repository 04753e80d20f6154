"""The star wing: STAR scores, a guard's P(safe) for every prefix of a response, in a batch or while it is written.
It may import guards and all below; it knows nothing of files or training.
Start with scoring.py; scores.py is its result; align.py carries scores over to a policy's tokens.
"""
