"""Lessons 05 to 07: experiments, their tables and figures, what an agent knows, and how it computes it.

Files in the order of reading: `tables`, `experiments`, `zero_shot`, `language_model`, `changing`, `stitching`,
`calibration`, `handoff`, `made_up`, `inside`, `surgery`, `rehearsal`.
"""
