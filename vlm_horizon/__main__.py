"""`python -m vlm_horizon` is the command line."""

from __future__ import annotations

from vlm_horizon.cli import main

if __name__ == "__main__":
    main()
