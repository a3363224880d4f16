"""Lesson 01: what a lake is, the environments, and the lists of lakes that are held out.

Files in the order of reading: `maps`, `env`, `held_out`.
"""
