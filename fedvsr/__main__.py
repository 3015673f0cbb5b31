"""Run the command line: `python -m fedvsr` is `fedvsr`."""

from fedvsr.cli import main

if __name__ == "__main__":
    main()
