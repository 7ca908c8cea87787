"""`python -m cantata` is the `cantata` command."""

import sys

from cantata.runtime.cli import main

sys.exit(main())
