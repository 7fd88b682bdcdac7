"""``python -m holdoverd``: see `holdoverd.main`."""

import sys

from holdoverd.main import main

sys.exit(main())
