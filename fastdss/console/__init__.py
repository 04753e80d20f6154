"""How every command speaks, completes what is typed, and how many threads it takes.
It imports nothing of fastdss but its errors and upstream.
Start with voice.py.
"""
