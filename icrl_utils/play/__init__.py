"""Lessons 00 and 05: what players see and answer, rollouts, and every player that needs no network.

Files in the order of reading: `policy`, `rollout`, `baselines`, `tabular`, `memoryless`, `posterior_sampling`,
`collect`.
"""
