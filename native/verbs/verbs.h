/* The engine of the grpc+verbs channel: TensorFlow's protocol of tensors behind commbench_ops.h, and
 * its queue pairs for the connecting code in Python (commbench/channels/grpc_verbs.py). */
#ifndef COMMBENCH_VERBS_H
#define COMMBENCH_VERBS_H

#include <infiniband/verbs.h>

#include "../commbench_ops.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum cb_verbs_protocol { CB_VERBS_V2, CB_VERBS_GDR, CB_VERBS_V1 } cb_verbs_protocol;

typedef struct cb_verbs_options {
    const char *device;
    uint32_t port;
    cb_verbs_protocol protocol;
    uint32_t rank, size;        /* a queue pair for each other rank */
    uint32_t depth;             /* receive requests, and work requests, of a queue pair */
    bool spin;                  /* look all the time, else sleep until a completion event comes */
} cb_verbs_options;

typedef struct cb_verbs_region {
    uint64_t address;
    uint32_t rkey;
} cb_verbs_region;

/* What the other side must know of one of our queue pairs, beside the port's address. */
typedef struct cb_verbs_endpoint {
    uint32_t qpn, psn;
    cb_verbs_region tx, rx;     /* message buffers */
} cb_verbs_endpoint;

typedef struct cb_verbs_limits {
    uint32_t max_msg_sz, active_mtu, lid;
    char firmware[64];
} cb_verbs_limits;

/* Messages sent by kind, tensors that came, bytes of payload copied. */
#define CB_VERBS_COUNTERS(X) \
    X(tensor_requests) X(metadata_updates) X(re_requests) X(error_statuses) X(memory_regions) \
    X(buffer_requests) X(buffer_responses) X(buffer_idles) X(acks) X(contents) X(reads) X(frees) \
    X(tensors) X(copied_nbytes)
typedef struct cb_verbs_counters {
#define CB_VERBS_MEMBER(name) uint64_t name;
    CB_VERBS_COUNTERS(CB_VERBS_MEMBER)
#undef CB_VERBS_MEMBER
} cb_verbs_counters;

typedef struct engine cb_verbs;

/* NULL: error has one line. code is errno. */
cb_verbs *cb_verbs_open(const cb_verbs_options *options, char error[256], int *code);
/* Ends the thread and releases the device's objects, for good. */
void cb_verbs_close(cb_verbs *e);
void cb_verbs_free(cb_verbs *e);
cb_engine *cb_verbs_engine(cb_verbs *e);
cb_verbs_limits cb_verbs_limits_of(const cb_verbs *e);
int cb_verbs_endpoint_of(cb_verbs *e, uint32_t peer, cb_verbs_endpoint *out);
/* One step of the queue pair's state machine: 0 or -errno. */
int cb_verbs_modify(cb_verbs *e, uint32_t peer, struct ibv_qp_attr *attributes, int mask);
/* The message buffers of the peer's end. */
int cb_verbs_join(cb_verbs *e, uint32_t peer, const cb_verbs_region *rx);
/* 1024 bytes to and from each peer, once all ranks are connected. */
int cb_verbs_ping(cb_verbs *e, int64_t timeout_ns);
cb_verbs_counters cb_verbs_count(const cb_verbs *e);
uint64_t cb_verbs_sent(const cb_verbs *e);
uint32_t cb_verbs_regions(const cb_verbs *e);

/* A control message and back, for tests: how long it is in the buffer. */
uint32_t cb_verbs_write_message(char *to, uint8_t type, const char *name, uint64_t step,
                                uint64_t index, uint64_t address, uint32_t rkey, uint64_t nbytes);

#ifdef __cplusplus
}
#endif
#endif
