"""``python -m holdoverd``: see `holdoverd.main`."""

import gc
import sys

# Of what is imported nothing is garbage, and looking through it again and again takes a quarter of the
# time: a daemon that was killed is back so much sooner.
gc.disable()

from holdoverd.main import main  # noqa: E402  after the line above

gc.freeze()
gc.enable()

sys.exit(main())
