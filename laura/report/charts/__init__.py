"""The charts of a report; their table stands in `laura.report.figures`."""
