"""Lessons 06 and 07: experiments, their tables and figures, what an agent knows, and how it computes it.

Files in the order of reading: `tables`, `experiments`, `changing`, `stitching`, `calibration`, `handoff`, `made_up`,
`inside`, `surgery`, `rehearsal`.
"""
