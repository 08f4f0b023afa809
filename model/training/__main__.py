"""`python -m model.training STAGE …`, for launchers that start modules: `torchrun -m model.training so-grpo …`."""

import sys

from model.training.cli import main

sys.exit(main(sys.argv[1:]))
