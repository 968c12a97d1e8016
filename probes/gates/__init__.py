"""First-order effects of tokens: gates on the visual keys, and their derivatives by backward passes.

A new first-order estimate enters here; exact effects belong into `replay`.
"""
