"""One base, many adapters, many tenants: the HTTP server, its rules, and the engines behind it."""
