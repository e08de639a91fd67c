/* The engine of the rdma channel: native verbs behind commbench_ops.h, and its queue pairs for the
 * connecting code in Python (commbench/channels/rdma_connect.py). */
#ifndef COMMBENCH_RDMA_H
#define COMMBENCH_RDMA_H

#include <infiniband/verbs.h>

#include "../commbench_ops.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

enum cb_rdma_op { CB_RDMA_SEND, CB_RDMA_WRITE, CB_RDMA_WRITE_IMM, CB_RDMA_READ };

typedef struct cb_rdma_options {
    const char *device;
    uint32_t port;
    uint32_t rank, size;        /* a queue pair for each other rank */
    enum cb_rdma_op op;
    uint32_t eager_max;         /* bytes; a longer message takes the rendezvous */
    uint32_t inline_max;        /* bytes wanted, fewer if the device has fewer */
    uint32_t tx_depth, rx_depth;    /* work requests; rx_depth: a power of two */
    uint32_t signal_every;      /* at most tx_depth / 2 */
    bool spin;                  /* else sleep on completion events */
    bool srq;                   /* one receive queue of rx_depth requests for all peers; by SEND only */
    /* ar-grpc; 0 and false for rdma */
    uint32_t chunk;             /* bytes: of a rendezvous that one work request moves at most */
    uint32_t coalesce;          /* bytes: runs of buffers up to this size are joined */
    bool adaptive;              /* eager_max is the most; adapt.h chooses below it */
} cb_rdma_options;

/* What the other side must know to reach one of our queue pairs, beside the port's address. */
typedef struct cb_rdma_endpoint {
    uint32_t qpn, psn, ring_rkey, ring_depth, ring_stride;
    uint64_t ring_address;
} cb_rdma_endpoint;

typedef struct cb_rdma_limits {
    uint32_t max_sge, max_inline, max_rd_atomic, max_msg_sz, active_mtu, lid, state;
    char firmware[64];
} cb_rdma_limits;

typedef struct rdma cb_rdma;

/* NULL: error has one line. code is errno. */
cb_rdma *cb_rdma_open(const cb_rdma_options *options, char error[256], int *code);
/* Gives everything back to the device; the verbs fail from then on. */
void cb_rdma_close(cb_rdma *r);
void cb_rdma_free(cb_rdma *r);
cb_engine *cb_rdma_engine(cb_rdma *r);
const cb_rdma_limits *cb_rdma_limits_of(const cb_rdma *r);
int cb_rdma_endpoint_of(cb_rdma *r, uint32_t peer, cb_rdma_endpoint *out);
/* One step of the queue pair's state machine: 0 or -errno. */
int cb_rdma_modify(cb_rdma *r, uint32_t peer, struct ibv_qp_attr *attributes, int mask);
/* The peer's end of that queue pair; before the first case. */
int cb_rdma_join(cb_rdma *r, uint32_t peer, const cb_rdma_endpoint *theirs);
/* Ends a block: serves until each of the peers has ended its own. 0, -ETIMEDOUT, -ECANCELED, ... */
int cb_rdma_settle(cb_rdma *r, const int32_t *peers, uint32_t npeers, int64_t timeout_ns);
/* Bytes handed to the device for sending, framing included; memory regions registered now. */
uint64_t cb_rdma_sent(const cb_rdma *r);
uint32_t cb_rdma_regions(const cb_rdma *r);
/* Bytes from which on messages to this peer take the rendezvous; UINT64_MAX: none does. */
uint64_t cb_rdma_threshold(const cb_rdma *r, uint32_t peer);

#ifdef __cplusplus
}
#endif
#endif
