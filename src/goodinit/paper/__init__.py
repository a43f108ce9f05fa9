"""The experiments of the paper: its data, networks, recipes, tables and figures. ``goodinit reproduce`` runs them.

Needs the extra ``paper``. Nothing in goodinit outside of this package and the command line imports it.

Source:
    Mishkin & Matas, "All you need is a good init", ICLR 2016, arXiv 1511.06422.
"""
