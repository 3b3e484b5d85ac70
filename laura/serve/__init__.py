"""One base, many adapters, many tenants: the HTTP door, its rules, and the engines behind it."""
