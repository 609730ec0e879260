"""`python -m optplug` is the `optplug` command."""

from optplug.cli import main

main()
