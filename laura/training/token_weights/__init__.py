"""Token weights: one file each, with `weights(tokens, strength)`, N factors of gradients.

They are constants to the gradient: what is followed is that of sum_t w_t * -ln p_t. Losses
that are logged, validated and measured stay plain cross-entropy, so that arms can be compared.
"""
