"""Middleware, one file each."""
