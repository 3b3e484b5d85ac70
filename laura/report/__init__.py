"""The report: charts, page and terminal tables, drawn from a study folder alone (no torch)."""
