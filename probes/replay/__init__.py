"""One captured forward pass, and any ablation of it replayed exactly from the captured states.

A new removal kind or a faster exact replay enters here. Nothing here knows what is measured.
"""
