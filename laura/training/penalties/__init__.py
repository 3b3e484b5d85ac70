"""Penalties: one file each, with `slope` (on distributions) or `pull` (on parameters).

`slope(probabilities_NV, base_NV)` is the gradient of each token's penalty by the model's logits,
given its probabilities, which are not to be changed, and the base's log-probabilities, which may
be; both float32. `pull(name, parameter)` is the gradient of a penalty by one parameter, or None.
"""
