"""What students use: checks of exercises, widgets, and the doctor.

Files in the order of reading: `checks`, `answers`, `widgets`, `doctor`.
"""
