"""Lesson 01: what a lake is, the environments, the lists of lakes that are held out, and games that are no lakes.

Files in the order of reading: `maps`, `env`, `held_out`, `games`.
"""
