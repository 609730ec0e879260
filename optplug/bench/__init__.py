"""Measure the time and memory of optimizer steps, and compare them with torch.optim: the library of `optplug bench`.

This package contains no terminal output (`optplug.cli.bench`) and no engine. Example:

    report = Report.from_results(measure([parse_entry("adam")], [PROFILES["tiny"]]))
    print(report.to_json())
"""

from optplug.bench.entries import Entry, parse_entry, select_entries
from optplug.bench.profiles import PROFILES, Profile, get_profile
from optplug.bench.results import Cell, Failure, Report, Timing, geometric_mean
from optplug.bench.timing import measure

__all__ = [
    "PROFILES",
    "Cell",
    "Entry",
    "Failure",
    "Profile",
    "Report",
    "Timing",
    "geometric_mean",
    "get_profile",
    "measure",
    "parse_entry",
    "select_entries",
]
