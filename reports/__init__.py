"""What a results file says. Imported as ``commbench.reports``; knows no channel and no harness."""
