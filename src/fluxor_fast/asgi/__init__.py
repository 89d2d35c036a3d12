"""ASGI both ways: ASGI applications under this server, and ``App`` under other servers."""
