"""What fastdss needs of other libraries and they do not promise: private names, module paths that no page documents,
attributes of their objects that fastdss replaces. One module per library; each function says why it is there, and a
test of the same library in tests/upstream fails where a new version breaks it. It imports nothing else of fastdss.
Start with transformers.py.
"""
