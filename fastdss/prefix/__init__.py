"""The prefix wing: from trees of token prefixes to logits at their ends, each distinct token computed once.
It may import models and kernels; it knows nothing of guards, templates or scores.
Start with tree.py, what a tree is; engine.py runs it; attention.py says who sees whom.
"""
