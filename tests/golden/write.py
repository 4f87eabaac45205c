"""Write golden numbers anew: `python -m tests.golden.write [losses] [traces] [experiment] [demo]`; none named, all.

A refactor never does. Whoever means to change a number says why in the commit that brings the new one.
"""

import sys
import tempfile
import time
from pathlib import Path

from tests.golden import compare, test_demo, test_experiment, test_losses, test_traces

MODULES = {module.NAME: module for module in (test_losses, test_traces, test_experiment, test_demo)}


def main(names: list[str]) -> None:
    for name in names or MODULES:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            compare.write(name, MODULES[name].measure(Path(folder)))
        print(f"{compare.path_of(name)}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
