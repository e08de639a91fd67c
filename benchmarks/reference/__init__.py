"""The loops that commbench's are compared with: plain C, mpi4py and grpcio."""
