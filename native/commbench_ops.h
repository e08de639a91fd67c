/*
 * commbench_ops.h: the boundary between a loop and a transport.
 *
 * A loop (loops.c) owns the clock, the stamps and the verification. An engine owns a
 * transport: it never reads a clock for measurement, keeps no statistics and prints
 * nothing. A handler owns what a server does with a request. The model is fio's ioengine_ops.
 *
 * Rules for every function here:
 *  - returns 0 (or a count, where it says so) on success and -errno on failure; after a failure
 *    last_error() has one line for people;
 *  - never touches Python: the caller has released the GIL;
 *  - never waits longer than its timeout (0: just look; < 0 is not allowed), and returns
 *    -ECANCELED soon after *stop becomes non-zero. A blocking call of a foreign library that
 *    cannot be interrupted (MPI_Recv) is the one exception; the watchdog of the harness ends it;
 *  - is called by one thread at a time.
 *
 * An engine reaches the harness in a PyCapsule named COMMBENCH_CAPSULE that holds a cb_engine *;
 * the capsule's destructor (or its context) keeps the owner alive. Third parties may hand one in.
 *
 * History: version 1, frozen after the tcp (epoll), mpi (any source, deferred answers) and gRPC
 * C++ completion-queue engines passed one contract test, all-to-all included.
 */
#ifndef COMMBENCH_OPS_H
#define COMMBENCH_OPS_H

#include <stdint.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

#define COMMBENCH_ABI_VERSION 1u
#define COMMBENCH_CAPSULE "commbench.engine.v1"

/* ------------------------------------------------------------------ messages */

/* One message in memory: n buffers in wire order, nbytes in all. n may be 0 (an empty ack). */
typedef struct cb_iov {
    const struct iovec *iov;
    uint32_t n;
    uint64_t nbytes;
} cb_iov;

/* What an engine is told before the clock starts. All pointers stay valid until finish().
 *
 * The slots are every buffer that will be used: a request passed to post() or exchange() is one
 * of `request`, a reply buffer one of `reply`, and what arrives must be delivered into one of
 * `incoming` (an engine with receive memory of its own copies into it: the application wants its
 * data in its own buffers). So an engine can pin, register or build datatypes for them here.
 * Slots may alias (OSU's bandwidth uses one buffer for the whole window). */
typedef struct cb_case {
    uint32_t struct_size;
    uint32_t window;            /* most messages in flight to one peer */
    const int32_t *peers;       /* ranks this rank exchanges with */
    uint32_t npeers;
    uint32_t reply_every;       /* 1: every message has a reply; W: the last of each W;
                                   0: none. Both ends are told the same. Counted per peer. */
    uint32_t asks;              /* this rank calls post() or exchange() */
    uint32_t serves;            /* this rank calls accept() and answer() */
    const cb_iov *request;      /* nrequest slots that this rank sends from */
    uint32_t nrequest;
    const cb_iov *reply;        /* nreply slots that replies to this rank land in */
    uint32_t nreply;
    const cb_iov *incoming;     /* nincoming >= window * npeers slots for requests of others */
    uint32_t nincoming;
    uint64_t answer_nbytes;     /* most bytes of an answer this rank gives */
    const int32_t *stop;        /* non-zero (atomic): give up with -ECANCELED */
    /* Added after version 1 was frozen; struct_size says whether it is there. */
    uint32_t ncalls;            /* message k to or from a peer is call k % ncalls of a step, each of
                                   which has a length of its own; 1: all are alike */
} cb_case;

/* A finished post(): reply_nbytes is what arrived (0 for one-way), in the first bytes of the
 * reply slot. */
typedef struct cb_done {
    uint64_t ticket;
    uint64_t reply_nbytes;
} cb_done;

/* A request that arrived. Its buffers stay readable until the ticket is answered and the slot
 * used again. wants_reply 0: one-way; it must not be answered, its slot is free for reuse
 * from the next accept() or progress() on. */
typedef struct cb_incoming {
    uint64_t ticket;
    int32_t peer;
    uint32_t wants_reply;
    cb_iov message;             /* what arrived: its iov_len are trimmed to nbytes, so that the
                                   message can be sent on as it is */
} cb_incoming;

/* ------------------------------------------------------------------ channel */

enum { CB_COMPLETED = 1, CB_ARRIVED = 2 };      /* progress() */

typedef enum cb_collective_kind {
    CB_BARRIER, CB_ALLREDUCE, CB_REDUCE_SCATTER, CB_ALLGATHER, CB_BROADCAST
} cb_collective_kind;
typedef enum cb_dtype { CB_FLOAT32, CB_FLOAT64, CB_FLOAT16, CB_BFLOAT16, CB_INT32 } cb_dtype;
typedef enum cb_reduction { CB_SUM, CB_AVERAGE, CB_MAX } cb_reduction;

typedef struct cb_collective {
    cb_collective_kind kind;
    cb_dtype dtype;
    cb_reduction op;
    int32_t root;
    const void *send;           /* == recv: in place */
    void *recv;
    uint64_t count;             /* elements */
} cb_collective;

typedef struct cb_channel_ops {
    uint32_t abi_version, struct_size;

    /* Get ready for one case; undo with finish(). Ranks meet at a barrier after prepare() and
     * after finish(), so nothing of one case can reach another. */
    int (*prepare)(void *self, const cb_case *c);
    int (*finish)(void *self);

    /* Start sending. reply NULL: one-way, done when the request buffer may be reused; else done
     * when the reply (possibly of 0 bytes) has arrived. -EAGAIN: the window is full. */
    int (*post)(void *self, int32_t peer, uint64_t ticket, const cb_iov *request,
                const cb_iov *reply);
    /* Up to max finished operations in any order; returns how many, 0 when none in time. */
    int (*poll)(void *self, cb_done *done, uint32_t max, int64_t timeout_ns);
    /* One blocking round trip with nothing else in flight; -ETIMEDOUT when late. */
    int (*exchange)(void *self, int32_t peer, const cb_iov *request, const cb_iov *reply,
                    uint64_t *reply_nbytes, int64_t timeout_ns);

    /* Up to max arrived requests, any peer; returns how many, 0 when none in time. A channel that
     * does not keep the order of one peer's requests says so (Capability.UNORDERED). */
    int (*accept)(void *self, cb_incoming *in, uint32_t max, int64_t timeout_ns);
    /* Answer a ticket that wants a reply, at any time and in any order. When this returns the
     * transport has the answer and needs no further call to deliver it: a block may end right
     * after. The answer's buffers may be the ticket's own. They may be reused once it is sent: at
     * the latest when accept() returns another request of that peer and slot, or after finish(). */
    int (*answer)(void *self, uint64_t ticket, const cb_iov *answer);

    /* Wait until a completion or an arrival can be had; CB_COMPLETED | CB_ARRIVED, or 0 when
     * nothing came in time. Lets one thread ask and serve at once. */
    int (*progress)(void *self, int64_t timeout_ns);

    int (*collective)(void *self, const cb_collective *op, int64_t timeout_ns); /* may be NULL */

    /* One line, valid until the next call; never NULL. */
    const char *(*last_error)(void *self);

    /* Added after version 1 was frozen; may be NULL or missing (struct_size). Payload bytes that this
     * engine and its framing have copied in all: staging, packing, serializing. What a kernel or a
     * library does inside its own calls is not known and not in it. */
    uint64_t (*copied)(void *self);
} cb_channel_ops;

typedef struct cb_engine {
    uint32_t abi_version, struct_size;
    const cb_channel_ops *ops;
    void *self;
} cb_engine;

/* ------------------------------------------------------------------ handler */

enum { CB_ANSWER = 0, CB_DEFER = 1 };

typedef struct cb_handler_ops {
    uint32_t abi_version, struct_size;
    /* CB_ANSWER: *answer is filled and goes out now. CB_DEFER: next_ready() will hand it out. */
    int (*on_request)(void *ctx, const cb_incoming *in, cb_iov *answer);
    /* 1: *ticket is to be answered with *answer now; 0: none is ready. May be NULL. */
    int (*next_ready)(void *ctx, uint64_t *ticket, cb_iov *answer);
} cb_handler_ops;

typedef struct cb_handler {
    const cb_handler_ops *ops;
    void *ctx;
} cb_handler;

/* ------------------------------------------------------------------ loops (loops.c) */

enum {
    CB_VERIFY_EVERY = 1,        /* fill and verify every message, outside the stamps */
    CB_ANY_ORDER = 4,           /* requests in flight of one peer may arrive in any order */
    CB_VERIFY_LAST = 2          /* verify the last window when the loop is over */
};

typedef enum cb_loop_kind {
    CB_LOOP_CLOSED,             /* ask, wait, ask: a ping-pong (window > 1: that many in flight) */
    CB_LOOP_WINDOWED,           /* windows to one peer: a reply with the last message of each, or
                                   with every message when reply_every is 1 (acked) */
    CB_LOOP_OPEN,               /* ask at intended[], whatever is still in flight */
    CB_LOOP_SERVE,              /* serve, ask nothing */
    CB_LOOP_ASK_AND_SERVE       /* ask and serve at once, in one thread */
} cb_loop_kind;

/* What a parameter server holds, and what workers push: float32, see cb_fill_gradients(). Each of the
 * `ncalls` messages of a step has its own part of the parameters. */
typedef struct cb_parameters {
    int32_t first_worker;       /* workers are ranks first_worker .. first_worker + workers - 1 */
    uint32_t workers;
    uint32_t ncalls;
    uint32_t deferred;          /* answers of a step wait until every worker has pushed it */
    const cb_iov *weights;      /* on a server 2 * ncalls messages, two sets; else NULL */
} cb_parameters;

/* One block of operations. An operation is `batch` messages: 1 for a request, the window for
 * bandwidth, where the next operation starts when the last message of this one is done. */
typedef struct cb_run {
    uint32_t abi_version, struct_size;
    const cb_engine *engine;
    const cb_case *c;           /* as given to prepare() */
    const cb_handler *handler;  /* NULL when this rank does not serve */
    const int32_t *targets;     /* peers to ask in turn */
    uint32_t ntargets;
    int32_t rank;               /* this rank: the sender in the content of its messages */
    uint64_t count;             /* operations to ask; operation k goes to targets[k % ntargets] */
    uint32_t batch;             /* messages of one operation */
    uint64_t serve;             /* messages to serve */
    uint64_t seed, number;      /* content: see cb_fill(); with CB_VERIFY_EVERY `number` is the
                                   first message's and grows by one per message and peer */
    uint64_t request_nbytes;    /* what a request must have on arrival, else -EBADMSG */
    uint64_t reply_nbytes;      /* what a reply must have */
    uint32_t flags;
    int64_t timeout_ns;         /* longest wait without progress: -ETIMEDOUT */
    int64_t *intended, *start, *end;  /* count stamps each, CLOCK_MONOTONIC ns; intended is input
                                         for CB_LOOP_OPEN (relative to the start), else may be NULL */
    /* out */
    uint64_t done, served, messages, validated;
    int32_t peer;               /* the peer that was waited for when it failed, or -1 */
    char message[256];          /* one line when the loop returns < 0 */
    /* in; added after version 1 was frozen */
    uint32_t ncalls;            /* 0: all messages are alike. Else message k of a peer is call
                                   k % ncalls, the request slots are those of call 0 by target, then
                                   of call 1, ..., and a reply is as long as its request */
    const uint64_t *call_nbytes;    /* what call k has on arrival here; request_nbytes is not used */
    const cb_parameters *parameters; /* NULL: content is that of cb_fill(); else gradients */
    double stretch;             /* > 1: wait after each call until it took so many times as long */
} cb_run;

int cb_loop(cb_loop_kind kind, cb_run *run);
int64_t cb_now_ns(void);

/* Built-in handlers: echo answers with the request itself, sink with an empty message. */
extern const cb_handler cb_echo, cb_sink;

/* ------------------------------------------------------------------ content (payload.c) */

/* Byte k of buffer b of message `number` from `sender` is byte k % 8 (little endian) of the word
 *   cb_key(seed, sender, number, b) + (k / 8) * 0x9E3779B97F4A7C15  (mod 2^64)
 * so that a flipped bit, swapped buffers, a message of another length, peer or time all show. */
uint64_t cb_key(uint64_t seed, int32_t sender, uint64_t number, uint32_t buffer);
void cb_fill(const cb_iov *message, uint64_t seed, int32_t sender, uint64_t number);
/* Looks at the first nbytes of the message: 0, or -EBADMSG with *buffer and *offset of the first
 * byte that differs. */
int cb_verify(const cb_iov *message, uint64_t seed, int32_t sender, uint64_t number,
              uint32_t *buffer, uint64_t *offset);

/* A gradient: float32 k of buffer b of call c is an integer of -3 .. 3, a function of (seed, sender,
 * number, b + c, k) that comes back after CB_GRADIENT_CYCLE numbers. */
#define CB_GRADIENT_CYCLE 7u
void cb_fill_gradients(const cb_iov *message, uint64_t seed, int32_t sender, uint64_t number,
                       uint32_t call);
int cb_verify_gradients(const cb_iov *message, uint64_t seed, int32_t sender, uint64_t number,
                        uint32_t call, uint32_t *buffer, uint64_t *offset);
/* The sums of all workers after `steps` steps that began with `number` and went on by `stride`. */
void cb_weights_of(const cb_parameters *p, uint64_t number, uint64_t stride, uint64_t steps,
                   float by_phase[CB_GRADIENT_CYCLE]);
int cb_verify_floats(const cb_iov *message, uint64_t seed, uint32_t call, const float *by_phase,
                     uint32_t *buffer, uint64_t *offset);

#ifdef __cplusplus
}
#endif
#endif
