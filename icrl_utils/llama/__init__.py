"""Lessons 02 and 04: a Llama, tiny or real: loading, adapters, reading Q-values, playing.

Files in the order of reading: `load`, `language_model`, `readout`, `adapters`, `agent`, `cache`, `attention`, `memory`.
"""
