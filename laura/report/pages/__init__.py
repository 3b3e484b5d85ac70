"""The pages of a report; their table is `laura.report.pages.table`."""
