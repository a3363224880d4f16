"""Lessons 05 to 07: experiments, their tables and figures, what an agent knows, and how it computes it.

Files in the order of reading: `tables`, `experiments`, `calibration`, `zero_shot`, `language_model`, `handoff`,
`made_up`, `inside`, `surgery`, `rehearsal`.
"""
