/*
 * What a C programmer writes with mpi.h: the reference for the mpi channel's native loops, called by
 * the same two ranks in the same launch. Build: mpicc -O2 -shared -fPIC. Both return 0 or what MPI
 * returned; the stamps are CLOCK_MONOTONIC ns, one pair per iteration, on the asking side.
 */
#include <mpi.h>

#include <stdint.h>
#include <stdlib.h>
#include <time.h>

enum { TAG = 1, ACK_TAG = 2, ACK_NBYTES = 4 };

#define TRY(call) do { int rc_ = (call); if (rc_ != MPI_SUCCESS) return rc_; } while (0)

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* A ping-pong, as osu_latency, but each iteration is stamped. */
int reference_pingpong(MPI_Fint fortran_comm, int asks, int peer, void *send, void *receive,
                       int nbytes, int64_t count, int64_t *start, int64_t *end)
{
    MPI_Comm comm = MPI_Comm_f2c(fortran_comm);
    MPI_Status status;
    for (int64_t i = 0; i < count; i++) {
        if (!asks) {
            TRY(MPI_Recv(receive, nbytes, MPI_BYTE, peer, TAG, comm, &status));
            TRY(MPI_Send(send, nbytes, MPI_BYTE, peer, TAG, comm));
            continue;
        }
        start[i] = now_ns();
        TRY(MPI_Send(send, nbytes, MPI_BYTE, peer, TAG, comm));
        TRY(MPI_Recv(receive, nbytes, MPI_BYTE, peer, TAG, comm, &status));
        end[i] = now_ns();
    }
    return MPI_SUCCESS;
}

static int one_window(MPI_Comm comm, int asks, int peer, char *buffer, int nbytes, int64_t stride,
                      int window, MPI_Request *requests, MPI_Status *statuses)
{
    char ack[ACK_NBYTES] = {0};
    for (int w = 0; w < window; w++) {
        void *at = buffer + w * stride;
        TRY(asks ? MPI_Isend(at, nbytes, MPI_BYTE, peer, TAG, comm, &requests[w])
                 : MPI_Irecv(at, nbytes, MPI_BYTE, peer, TAG, comm, &requests[w]));
    }
    TRY(MPI_Waitall(window, requests, statuses));
    return asks ? MPI_Recv(ack, ACK_NBYTES, MPI_BYTE, peer, ACK_TAG, comm, &statuses[0])
                : MPI_Send(ack, ACK_NBYTES, MPI_BYTE, peer, ACK_TAG, comm);
}

/* The loop of osu_bw. stride 0: one buffer for the whole window, as there. */
int reference_windows(MPI_Fint fortran_comm, int asks, int peer, char *buffer, int nbytes,
                      int64_t stride, int window, int64_t count, int64_t *start, int64_t *end)
{
    MPI_Comm comm = MPI_Comm_f2c(fortran_comm);
    MPI_Request *requests = malloc(sizeof *requests * (size_t)window);
    MPI_Status *statuses = malloc(sizeof *statuses * (size_t)window);
    int rc = requests && statuses ? MPI_SUCCESS : MPI_ERR_NO_MEM;
    for (int64_t i = 0; rc == MPI_SUCCESS && i < count; i++) {
        int64_t before = now_ns();
        rc = one_window(comm, asks, peer, buffer, nbytes, stride, window, requests, statuses);
        if (asks) {
            start[i] = before;
            end[i] = now_ns();
        }
    }
    free(requests);
    free(statuses);
    return rc;
}
