"""Between groups, models and covariates: differences, associations, and how many images they need.

A new comparison enters here.
"""
