"""`python -m control.cli`: the same as the `tollkeeper` command, for where its script is not on the path."""

from control.cli import main

main()
