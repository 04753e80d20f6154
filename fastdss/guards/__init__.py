"""The guards wing: what a guard model is asked and how its verdict is read.
It may import chat, models and prefix.
Start with spec.py, a guard as data; known.py lists the vendors' guards; guard.py joins spec, model and tokenizer.
"""
