"""Lesson 05: experiments, their tables and figures, and what an agent knows.

Files in the order of reading: `experiments`, `calibration`, `zero_shot`.
"""
