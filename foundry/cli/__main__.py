"""`python -m foundry.cli`."""

from foundry.cli import main

if __name__ == "__main__":
    main()
