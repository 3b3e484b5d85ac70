"""What a study measured and concluded: its files, and the arithmetic of the one judge."""
