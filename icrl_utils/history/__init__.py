"""Lesson 01: episodes <-> text <-> ids, and where the decisions stand.

Files in the order of reading: `episodes`, `format`, `text`, `compact`, `paper`, `words`, `tokenizers`.
"""
