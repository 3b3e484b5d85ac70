"""Paces: one file each, with `factor(loss_nats, strength)`, a factor of a step's rate."""
