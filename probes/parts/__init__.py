"""What a sample of a run gets, as parts: what each runs, told before it runs, and what becomes of the result.

A new probe enters here, as a part of its own and a line in `probes.plans.plans.parts_of`.
"""
