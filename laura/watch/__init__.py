"""`laura watch`: a page of a study while it goes on, served to this machine alone."""
