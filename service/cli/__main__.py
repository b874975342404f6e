"""`python -m service.cli` is the `hush` command."""

from __future__ import annotations

from service.cli import main

main()
