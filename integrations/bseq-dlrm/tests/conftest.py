"""``ranker_job`` is a script as well, which two processes run; the tests import it from here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
