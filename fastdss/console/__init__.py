"""How every command speaks, and how many threads it takes.
It imports nothing of fastdss but its errors.
Start with voice.py.
"""
