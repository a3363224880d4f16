"""Lessons 02, 04 and 05: a Llama, tiny or real: loading, adapters, reading Q-values, playing."""
