"""Programs that measure commbench itself. Not installed; run them from the repository."""
