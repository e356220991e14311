"""`python -m cxrbench`."""

from cxrbench.cli import main

if __name__ == "__main__":
    main()
