"""One engine that scores and generates, for evaluation, chat and the server."""
