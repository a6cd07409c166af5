"""`python -m rosey`: the command line without its script."""

from rosey.cli import main

if __name__ == "__main__":
    main()
