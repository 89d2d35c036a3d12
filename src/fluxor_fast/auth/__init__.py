"""Who is asking: tokens, passwords, roles."""
