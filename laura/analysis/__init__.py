"""What a study's weights, samples and scores say beyond single numbers."""
