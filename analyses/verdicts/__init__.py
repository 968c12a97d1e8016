"""From curves to layers: collapse, horizon and its criteria, their agreement, layers chosen on held-out images.

A new criterion or detector enters here.
"""
