"""Policies that are graded: one file each, with `advantages(rewards_QS, strength)`, (Q, S).

Those that are told a demonstration instead are a `slope` of `penalties`.
"""
