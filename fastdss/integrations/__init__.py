"""The integrations wing: plugins through which other training packages use fastdss.
It may import everything but the demo and the command line; nothing imports it. Each module needs its own package.
Start with axolotl.py. docs/integrations says what works in which package.
"""
