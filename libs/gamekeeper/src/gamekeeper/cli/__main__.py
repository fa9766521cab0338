"""`python -m gamekeeper.cli`: the same as `gamekeeper`."""

from gamekeeper.cli import main

if __name__ == "__main__":
    main()
