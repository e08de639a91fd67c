/*
 * What the grpc+mpi engine knows of an MPI library without its mpi.h: as mpi_library.h, for the calls
 * that TensorFlow's gRPC+MPI made. The engine is compiled for int and for pointer handles.
 */
#ifndef COMMBENCH_GRPC_MPI_LIBRARY_H
#define COMMBENCH_GRPC_MPI_LIBRARY_H

#include "commbench_ops.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* H: a handle. S: the address of a Status, whose size and layout only the library knows. */
#define CB_GRPC_MPI_CALLS(X, H, S) \
    X(Isend, (const void *, int, H, int, int, H, H *)) \
    X(Improbe, (int, int, H, int *, H *, S)) \
    X(Mrecv, (void *, int, H, H *, S)) \
    X(Recv, (void *, int, H, int, int, H, S)) \
    X(Test, (H *, int *, S)) \
    X(Wait, (H *, S)) \
    X(Alloc_mem, (ptrdiff_t, H, void *)) \
    X(Free_mem, (void *)) \
    X(Get_count, (S, H, int *)) \
    X(Error_string, (int, char *, int *))

#define CB_GRPC_MPI_COUNT(name, arguments) +1
enum { CB_GRPC_MPI_NCALLS = 0 CB_GRPC_MPI_CALLS(CB_GRPC_MPI_COUNT, , ) };
enum { CB_GRPC_MPI_STATUS_MAX = 128 };  /* bytes of a Status; MPICH has 20, Open MPI 24 */

typedef struct cb_grpc_mpi_library {
    void *call[CB_GRPC_MPI_NCALLS];     /* in the order of CB_GRPC_MPI_CALLS */
    uint64_t comm, byte, info_null;
    int32_t any_source, source_at;      /* offset of MPI_SOURCE in a Status */
    int32_t rank;                       /* ours */
    int32_t optimal;                    /* TensorFlow's MPI_OPTIMAL_PATH */
    int32_t sleeps;                     /* the progress thread sleeps when nothing is there */
} cb_grpc_mpi_library;

/* What the engine did so far, in messages sent (by tag), tensors that came, and bytes of payload
 * that were copied in this process. For tests: they are no part of a result. */
typedef struct cb_grpc_mpi_counters {
    uint64_t requests, responses, contents, tensors, copied_nbytes;
} cb_grpc_mpi_counters;

/* NULL: no memory or no thread. stop() ends the thread, after which MPI may be called by another; 0:
 * it hangs in MPI, or a case was open. close() leaves a thread that hangs. */
cb_engine *cb_grpc_mpi_int_open(const cb_grpc_mpi_library *library);
int cb_grpc_mpi_int_stop(cb_engine *engine);
void cb_grpc_mpi_int_close(cb_engine *engine);
void cb_grpc_mpi_int_count(cb_engine *engine, cb_grpc_mpi_counters *counters);
cb_engine *cb_grpc_mpi_pointer_open(const cb_grpc_mpi_library *library);
int cb_grpc_mpi_pointer_stop(cb_engine *engine);
void cb_grpc_mpi_pointer_close(cb_engine *engine);
void cb_grpc_mpi_pointer_count(cb_engine *engine, cb_grpc_mpi_counters *counters);

#ifdef __cplusplus
}
#endif
#endif
