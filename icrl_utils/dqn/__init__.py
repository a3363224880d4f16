"""Lesson 03: replay, and the DQN step.

Files in the order of reading: `replay`, `dqn`, `one_lake`, `branches`.
"""
