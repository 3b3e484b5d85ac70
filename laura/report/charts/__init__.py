"""The charts of a report; their table is `laura.report.charts.table`."""
