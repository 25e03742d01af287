"""`python -m export.gpu_bench`; see `export.gpu_bench.bench`."""

import sys

from export.gpu_bench.bench import main

sys.exit(main())
