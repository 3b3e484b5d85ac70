"""What finetuning did to the weights, read from saved files matrix by matrix."""
