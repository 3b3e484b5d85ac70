"""The embedded laboratory: a small world, two target domains, and a base that knows the world."""
