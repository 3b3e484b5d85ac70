"""Models, adapters, and what is asked of them."""
