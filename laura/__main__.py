"""`python -m laura` is the command `laura`."""

from laura.cli.app import main

main()
