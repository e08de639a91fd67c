"""A virtual machine with two Soft-RoCE devices: RDMA on hosts that have no card.

``image``: is all there that it takes; ``virtme``: what virtme-run is told; ``machine``: boot,
command, power-off; ``guest``: what runs inside before the command; ``loss``: packet loss and the
counters that show it.
"""
