"""Compare evaluated runs. The same as ``distrib compare``."""

import sys

from distrib.console import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
