"""What ``benchmarks/parity.py`` is made of; docs/parity.md says what it compares, and how."""
