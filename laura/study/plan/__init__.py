"""What a recipe will take and could decide, before anything starts."""
