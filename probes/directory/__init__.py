"""The run directory, written: parts that are renamed into place, and rows read back to be extended.

A new stored table or array enters here, by the schema of `analyses.runs`.
"""
