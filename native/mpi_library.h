/*
 * What the mpi engine knows of an MPI library without its mpi.h: the addresses of its functions and
 * the values that mpi4py told us at run time. The engine is compiled twice, because the two families
 * of MPI ABIs pass handles as int (MPICH, Intel MPI) or as pointers (Open MPI).
 */
#ifndef COMMBENCH_MPI_LIBRARY_H
#define COMMBENCH_MPI_LIBRARY_H

#include "commbench_ops.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* H: a handle. S: the address of a Status, whose size and layout only the library knows. */
#define CB_MPI_CALLS(X, H, S) \
    X(Send, (const void *, int, H, int, int, H)) \
    X(Recv, (void *, int, H, int, int, H, S)) \
    X(Isend, (const void *, int, H, int, int, H, H *)) \
    X(Irecv, (void *, int, H, int, int, H, H *)) \
    X(Send_init, (const void *, int, H, int, int, H, H *)) \
    X(Recv_init, (void *, int, H, int, int, H, H *)) \
    X(Start, (H *)) \
    X(Waitall, (int, H *, S)) \
    X(Testsome, (int, H *, int *, int *, S)) \
    X(Iprobe, (int, int, H, int *, S)) \
    X(Cancel, (H *)) \
    X(Request_free, (H *)) \
    X(Get_count, (S, H, int *)) \
    X(Type_create_hindexed, (int, const int *, const ptrdiff_t *, H, H *)) \
    X(Type_commit, (H *)) \
    X(Type_free, (H *)) \
    X(Error_class, (int, int *)) \
    X(Error_string, (int, char *, int *))

#define CB_MPI_COUNT(name, arguments) +1
enum { CB_MPI_NCALLS = 0 CB_MPI_CALLS(CB_MPI_COUNT, , ) };

enum cb_mpi_mode { CB_MPI_BLOCKING, CB_MPI_NONBLOCKING, CB_MPI_PERSISTENT };

typedef struct cb_mpi_library {
    void *call[CB_MPI_NCALLS];      /* in the order of CB_MPI_CALLS */
    uint64_t comm, byte, request_null;
    uint32_t status_nbytes;         /* size of a Status; offsets in it, -1: not to be seen */
    int32_t error_at, count_at;     /* of its MPI_ERROR, and of its count of bytes */
    int32_t error_in_status, error_pending, undefined;
    int32_t mode;
    int32_t pack;                   /* messages of several buffers go through a staging buffer */
} cb_mpi_library;

cb_engine *cb_mpi_int_open(const cb_mpi_library *library);
void cb_mpi_int_close(cb_engine *engine);
cb_engine *cb_mpi_pointer_open(const cb_mpi_library *library);
void cb_mpi_pointer_close(cb_engine *engine);

#ifdef __cplusplus
}
#endif
#endif
