"""Statistics of plain arrays: resampling, permutation, correlation, depths, rules of collapse.

A new statistic of numbers alone enters here. Nothing here knows what a run is.
"""
