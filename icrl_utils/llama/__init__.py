"""Lessons 02, 04 and 05: a Llama, tiny or real: loading, adapters, reading Q-values, playing.

Files in the order of reading: `load`, `readout`, `adapters`, `agent`, `cache`, `attention`, `memory`; and of a
language model in its own words: `language_model`, `frozen`, `lora`, `words_agent`.
"""
