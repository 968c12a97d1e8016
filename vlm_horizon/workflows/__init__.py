"""What goes from measuring to concluding and back: runs that choose their layers on the way, and the demonstration.

Functions that need both `probes` and `analyses` or `figures` enter here.
"""
