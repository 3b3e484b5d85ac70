"""Held-out loss: nats per token, and per byte, of text the model never saw.

`target_loss` takes documents of the target domain, `validation_loss` those that
choose the learning rate, `source_loss` text the base already models well. Only
supervised tokens count (the answer in the instruct regime, every predicted
token in the pretrain regime). The number is the sum of nats, -ln p, over the sum of
tokens (bytes) of all documents, so long documents weigh more; its standard
error takes the document as the unit (`statistics.ratio`).
Nats per byte compares models with different tokenizers, nats per token does not.
"""

from __future__ import annotations

VERSION = "1"
METRICS = ("nats_per_token", "nats_per_byte")
