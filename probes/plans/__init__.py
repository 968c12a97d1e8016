"""What a run is asked for and what each sample therefore gets: options, parts of a plan, jobs, progress.

A new option of a run or a new part of a plan enters here.
"""
