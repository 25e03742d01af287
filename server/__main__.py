"""`python -m server` is `thinbridge`."""

import sys

from server.cli import main

sys.exit(main())
