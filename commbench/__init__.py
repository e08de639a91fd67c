"""commbench: which transport is faster, why, and did my change slow it down?"""

__version__ = "0.1.0"
