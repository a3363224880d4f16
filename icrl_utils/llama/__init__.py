"""Lessons 02 and 04: a Llama, tiny or real: loading, adapters, reading Q-values, playing.

Files in the order of reading: `load`, `readout`, `adapters`, `agent`, `cache`, `attention`, `memory`; and of a
pretrained language model in its own words: `language_model`, `frozen`, `lora`, `words_agent`.
"""
