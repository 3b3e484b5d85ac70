"""The recipe: every setting of a study, checked before torch loads."""
