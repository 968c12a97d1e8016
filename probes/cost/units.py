"""Durations, bytes and operations in a few words."""

from __future__ import annotations

from math import inf


def duration_text(seconds: float) -> str:
    """Return a time in seconds as text of two digits with a fitting unit.

    >>> duration_text(0.4), duration_text(42), duration_text(130), duration_text(9000)
    ('0.4 s', '42 s', '2.2 min', '2.5 h')
    """
    return _in_units(seconds, (90, 1, "s"), (5400, 60, "min"), (inf, 3600, "h"))


def byte_text(count: float) -> str:
    """Return a number of bytes as text of two digits, in units of powers of 1,000.

    >>> byte_text(940), byte_text(14_200_000), byte_text(1.52e9)
    ('940 bytes', '14 MB', '1.5 GB')
    """
    larger = (1e6, 1e3, "kB"), (1e9, 1e6, "MB"), (1e12, 1e9, "GB"), (inf, 1e12, "TB")
    return _in_units(count, (1e3, 1, "bytes"), *larger)


def operation_text(count: float) -> str:
    """Return a number of floating-point operations as text of two digits with a fitting unit.

    >>> operation_text(1.23e12), operation_text(3.4e10)
    ('1.2 TFLOP', '34 GFLOP')
    """
    larger = (1e15, 1e12, "TFLOP"), (inf, 1e15, "PFLOP")
    return _in_units(count, (1e9, 1e6, "MFLOP"), (1e12, 1e9, "GFLOP"), *larger)


def _in_units(count: float, *units: tuple[float, float, str]) -> str:
    """Return a number in the first of the units (limit, size, name) whose limit it stays below."""
    size, name = next((size, name) for limit, size, name in units if count < limit)
    value = count / size
    return f"{value:,.0f} {name}" if value >= 10 else f"{value:.2g} {name}"
