"""Lesson 03: replay, and the DQN step."""
