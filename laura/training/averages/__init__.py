"""Averages of the weights over steps: one file each, with `share` and `lead`.

After step t, counted from 1, `share(t, strength)` of the weights goes into the average, which
begins as the weights do. What is kept and validated is the average plus `lead(t, strength)` times
(weights - weights at the beginning).
"""
