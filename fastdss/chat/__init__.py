"""Common ground: conversations, their tokens and the places where a response is cut.
It imports nothing else of fastdss.
Start with encoder.py, from conversations to token ids; boundaries.py finds the ends of prefixes.
"""
