"""Durations, bytes and operations in a few words."""

from __future__ import annotations


def duration_text(seconds: float) -> str:
    """Return a time in seconds as text of two digits with a fitting unit.

    >>> duration_text(0.4), duration_text(42), duration_text(130), duration_text(9000)
    ('0.4 s', '42 s', '2.2 min', '2.5 h')
    """
    for limit, divisor, unit in ((90, 1, "s"), (5400, 60, "min")):
        if seconds < limit:
            return f"{_two_digits(seconds / divisor)} {unit}"
    return f"{_two_digits(seconds / 3600)} h"


def byte_text(count: float) -> str:
    """Return a number of bytes as text of two digits, in units of powers of 1,000.

    >>> byte_text(940), byte_text(14_200_000), byte_text(1.52e9)
    ('940 bytes', '14 MB', '1.5 GB')
    """
    for limit, divisor, unit in ((1e3, 1, "bytes"), (1e6, 1e3, "kB"), (1e9, 1e6, "MB"), (1e12, 1e9, "GB")):
        if count < limit:
            return f"{_two_digits(count / divisor)} {unit}"
    return f"{_two_digits(count / 1e12)} TB"


def operation_text(count: float) -> str:
    """Return a number of floating-point operations as text of two digits with a fitting unit.

    >>> operation_text(1.23e12), operation_text(3.4e10)
    ('1.2 TFLOP', '34 GFLOP')
    """
    for limit, divisor, unit in ((1e9, 1e6, "M"), (1e12, 1e9, "G"), (1e15, 1e12, "T")):
        if count < limit:
            return f"{_two_digits(count / divisor)} {unit}FLOP"
    return f"{_two_digits(count / 1e15)} PFLOP"


def _two_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
