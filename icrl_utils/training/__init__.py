"""Lesson 04: the two training loops, what configures them, and how a run is kept.

Files in the order of reading: `training`, `configs`, `data`, `optimizers`, `runs`, `folder`, `pretraining`,
`world_model`, `finetuning`.
"""
