"""What was kept of every item: found in a folder, chosen, laid out, shown. No torch."""
