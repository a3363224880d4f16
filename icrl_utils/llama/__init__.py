"""Lessons 02 and 04: a Llama, tiny or real: loading, adapters, reading Q-values, playing."""
