"""Publication figures (matplotlib) of what `analyses` concludes; never torch, never a statistic of its own."""
