"""From a name, a path or a built model to a proved `ProbedModel`, or a refusal with its reason.

A new check of what can be measured enters here, and so does another way to load weights.
"""
