"""Scoring whole data sets: ``rows`` -> ``scorer`` -> ``store``, driven by ``run`` through one of ``engines``."""
