"""Verdicts as tables for print and for other programs, and the papers' published numbers."""

from typing import TYPE_CHECKING

from vlm_horizon.lazy import lazy_names

if TYPE_CHECKING:
    from analyses.reports.export import render, to_csv
    from analyses.reports.published import Published, PublishedNumbers, load_published
    from analyses.reports.tables import collapse_table, difference_table, horizon_table
    from analyses.reports.text import Table, to_record
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Published",
    "PublishedNumbers",
    "Table",
    "collapse_table",
    "difference_table",
    "horizon_table",
    "load_published",
    "render",
    "to_csv",
    "to_record",
]
