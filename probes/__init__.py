"""Measurements on a model (torch): load, capture, replay, entropy, information, and the writer of run directories."""
