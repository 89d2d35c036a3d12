"""Rate limits: how many requests a client, user or key may make in a time."""
