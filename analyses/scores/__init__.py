"""Scores of whole answers, by the rules of the benchmarks.

A new scoring rule enters here.
"""
