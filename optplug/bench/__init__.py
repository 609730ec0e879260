"""Time and memory of optimizer steps against torch's own: what `optplug bench` measures, as a library.

report = Report.of(measure(entries(["adam"])[0], [PROFILES["tiny"]]))
print(report.to_json())
"""

from optplug.bench.entries import Entry, entries, entry
from optplug.bench.profiles import PROFILES, Profile, profile
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
    "entries",
    "entry",
    "geometric_mean",
    "measure",
    "profile",
]
