"""``python -m commbench`` and the console script."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """The command line; Ctrl-C is one line at any time, also while it is being imported."""
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked by guard.py
        from commbench.cli import main as run

        run()
    except KeyboardInterrupt:
        if "COMMBENCH_LAUNCH_DIR" not in os.environ:  # there our launcher says it
            sys.stderr.write("commbench: interrupted\n")
        sys.exit(5)
    except Exception:  # a defect of ours; Python's own exit code would mean "regression"
        import traceback

        traceback.print_exc()
        sys.exit(5)


if __name__ == "__main__":
    main()
