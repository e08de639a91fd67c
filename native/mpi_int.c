/* The mpi engine for libraries whose handles are int: MPICH and its kin, Intel MPI. */
#define MPI_HANDLE int
#define MPI_OPEN cb_mpi_int_open
#define MPI_CLOSE cb_mpi_int_close
#include "mpi_engine.h"
