"""`python -m hrvqvae.cli` is `hrvqvae`."""

import sys

from hrvqvae.cli import main

sys.exit(main())
