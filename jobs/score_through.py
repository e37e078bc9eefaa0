"""Score users through a server. The same as ``distrib score-through``."""

import sys

from distrib.console import main

if __name__ == "__main__":
    main(["score-through", *sys.argv[1:]])
