"""Common ground: what fastdss needs to know of models of transformers, wrapped, split over ranks or plain.
It imports nothing else of fastdss.
Start with causal_lm.py, the backbone and the head; head_call.py runs the loss inside the head's own call.
"""
