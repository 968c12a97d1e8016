"""Samples as people have them: files, tables, hub datasets, folders, videos, and the benchmarks that are known.

A new file format or benchmark enters here. Nothing here needs torch or knows what a model is.
"""
