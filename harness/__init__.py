"""How a run is carried out. Imported as ``commbench.harness``."""
