"""Estimate a run without cluster or data. ``python jobs/plan.py --config configs/demo.toml``."""

import os
import sys

from distrib.submit.command import plan_run

if __name__ == "__main__":
    about = "Estimate memory and time of a run from its run file and sizes."
    sys.exit(plan_run(about, environment=os.environ))
