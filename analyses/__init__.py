"""Statistics on a run directory (numpy, never torch): effect curves, layers, intervals, comparisons, tables."""
