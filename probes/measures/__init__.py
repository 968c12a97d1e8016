"""What is measured on one sample: entropies, removals, token information, noise floors, whole answers.

A new measure of one sample enters here. Nothing here knows files, runs or progress.
"""
