"""What fastdss uses of other libraries although they do not promise to keep it: private names, undocumented modules,
and attributes of their objects that fastdss replaces. There is one module per library. Each function says why no public
name does, and a test of that library in tests/upstream fails where a new version breaks it.
It imports nothing else of fastdss.
Start with transformers.py.
"""
