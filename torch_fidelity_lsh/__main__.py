"""``python -m torch_fidelity_lsh`` and ``torchrun -m torch_fidelity_lsh``: the command ``fidelity-lsh``."""

import sys

from torch_fidelity_lsh.cli import main

if __name__ == "__main__":
    sys.exit(main())
