"""Ray job: export embeddings. The same as ``distrib export``."""

import sys

from distrib.console import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
