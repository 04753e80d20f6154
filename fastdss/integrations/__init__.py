"""The integrations wing: plugins by which other trainers' packages use fastdss.
It may import everything but the demo and the command line; nothing imports it, and each module needs its package.
Start with axolotl.py, a plugin named in the YAML; what works where stands in docs/integrations.
"""
