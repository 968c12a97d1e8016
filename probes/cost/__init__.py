"""What a plan takes before it is run: operations, time, memory and disk, counted from the same parts.

A new resource enters here; a new probe needs no line here.
"""
