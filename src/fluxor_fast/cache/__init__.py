"""Answers of functions, kept for a while: see ``cache`` and ``docs/CACHE.md``."""

from fluxor_fast.cache.cache import Cache, Figures

__all__ = ["Cache", "Figures"]
