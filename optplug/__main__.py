"""`python -m optplug` runs the `optplug` command."""

from optplug.cli import main

main()
