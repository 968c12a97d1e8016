"""Words, tables and exports of results, and the published numbers beside them.

A new table or report section enters here. Nothing is concluded here.
"""
