"""The commands of `vlm-horizon` and the options that they share; `vlm_horizon/cli.py` lists them.

A new command enters here, and so does a new group of options. None computes: each calls what Python users call.
"""
