"""`python -m hrvqvae` is `hrvqvae`: the form that torchrun starts."""

import sys

from hrvqvae.cli import main

sys.exit(main())
