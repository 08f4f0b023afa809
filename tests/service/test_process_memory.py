"""What a serving process does with its memory before the first request."""

import subprocess
import sys


def test_what_was_imported_is_looked_through_no_more() -> None:
    asked = "import gc; from service.process_memory import settle; settle(); "
    told = asked + "print(gc.get_freeze_count(), gc.isenabled())"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    frozen, enabled = done.stdout.split()
    assert int(frozen) > 1000 and enabled == "True", "what comes later still is"
