"""The prefix wing: from trees of token prefixes to the logits at their ends, computing each distinct token once.
It may import models and kernels; it knows nothing of guards, templates or scores.
Start with tree.py, which says what a tree is. engine.py runs trees; attention.py says which tokens see which.
"""
