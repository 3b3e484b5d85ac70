"""The statements of the paper, judged by studies; `table.py` lists them."""
