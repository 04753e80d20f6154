"""Common ground: pieces of self-contained HTML pages.
It imports nothing else of fastdss.
Start with pieces.py; charts.py draws, style.py holds the colours of light and dark.
"""
