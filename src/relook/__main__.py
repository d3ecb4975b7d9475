"""`python -m relook` is `relook`."""

import sys

from relook.cli import main

sys.exit(main())
