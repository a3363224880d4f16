"""Lesson 04: the two training loops, what configures them, and how a run is kept."""
