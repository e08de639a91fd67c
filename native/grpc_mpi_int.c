/* The grpc+mpi engine for libraries whose handles are int: MPICH and its kin, Intel MPI. */
#define MPI_HANDLE int
#define ENGINE_OPEN cb_grpc_mpi_int_open
#define ENGINE_STOP cb_grpc_mpi_int_stop
#define ENGINE_CLOSE cb_grpc_mpi_int_close
#define ENGINE_COUNT cb_grpc_mpi_int_count
#include "grpc_mpi_engine.h"
