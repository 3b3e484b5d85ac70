"""The pages of a report; their table stands in `laura.report.html`."""
