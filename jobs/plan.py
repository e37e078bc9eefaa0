"""Estimate a run without cluster or data. The same as ``distrib plan``."""

import sys

from distrib.console import main

if __name__ == "__main__":
    main(["plan", *sys.argv[1:]])
