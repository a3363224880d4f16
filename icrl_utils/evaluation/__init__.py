"""Lessons 06 and 07: experiments, their tables and figures, and what an agent knows."""
