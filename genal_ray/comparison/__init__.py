"""From the runs of several methods and seeds to learning curves, a summary, a figure and a README.

    runs/<method>/seed-<n>/ ─► curves.csv ─┬─► summary.csv ─► README.md
                                           └─► figure.png, figure.svg

Everything here only reads finished rounds, so it may be called while runs are still going on.
"""
