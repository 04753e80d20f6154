"""What all commands share at the terminal: how they print, completion by the Tab key, and the number of threads.
It imports nothing of fastdss but its errors and upstream.
Start with output.py.
"""
