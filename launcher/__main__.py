"""`python -m launcher`: the command line."""

import sys

if not sys.flags.safe_path:  # else it is not there
    del sys.path[
        0
    ]  # the working directory: what lies there must not be imported in a library's place

from launcher.cli import main

main()
