/* The grpc+mpi engine for libraries whose handles are pointers: Open MPI. */
#define MPI_HANDLE void *
#define ENGINE_OPEN cb_grpc_mpi_pointer_open
#define ENGINE_STOP cb_grpc_mpi_pointer_stop
#define ENGINE_CLOSE cb_grpc_mpi_pointer_close
#define ENGINE_COUNT cb_grpc_mpi_pointer_count
#include "grpc_mpi_engine.h"
