"""Adapters: the optimizers and schedulers of other packages by name, one module and one plugin for each package.

A module is named as the package that it registers, and registers nothing if that package is not installed. It imports
neither that package nor torch: what the installed version has is read from its source text.
"""
