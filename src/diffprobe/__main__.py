"""`python -m diffprobe`: the command line."""

from diffprobe.cli import main

if __name__ == "__main__":
    main()
