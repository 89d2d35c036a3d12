"""``python -m fluxor_fast``."""

from fluxor_fast.cli import main

main()
