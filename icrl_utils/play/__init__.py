"""Lessons 00 and 06: what players see and answer, rollouts, and every player that needs no network.

Files in the order of reading: `policy`, `rollout`, `baselines`, `forgetful`, `tabular`, `memoryless`,
`posterior_sampling`, `collect`.
"""
