"""Lesson 01: episodes <-> text <-> ids, and where the decisions stand."""
