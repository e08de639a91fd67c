"""One module per channel; ``base`` holds the contract, ``commbench.registry`` the names."""
