/* The mpi engine for libraries whose handles are pointers: Open MPI. */
#define MPI_HANDLE void *
#define MPI_OPEN cb_mpi_pointer_open
#define MPI_CLOSE cb_mpi_pointer_close
#include "mpi_engine.h"
