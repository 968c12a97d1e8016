"""Running the jobs of a plan over a stream of samples, and writing what comes of them.

A new engine (threads, processes, a cluster) enters here.
"""
