"""Curves of a run: effects and entropies by layer and image, and selections of samples.

A new curve, or a new way to choose samples, enters here. Nothing here names a layer.
"""
