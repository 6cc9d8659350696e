"""`python -m pnp_batch` is `pnp-batch`."""

from pnp_batch.cli import main

if __name__ == "__main__":
    main()
