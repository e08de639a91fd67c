/*
 * broker.h: the three roles of the benchmark `broker` over any engine: a broker (leader and follower),
 * a producer, a consumer. Each runs one pass in one thread and returns when the pass is over.
 *
 * Ranks 0 .. brokers - 1 are brokers, then come the producers, then the consumers. Partition p is led by
 * broker p % brokers; its replicas are `replication` brokers from there on, round the circle.
 *
 * All return 0 or -errno; then `message` has one line for people and `peer` the rank that it is about,
 * or -1. A rank that does not serve has a cb_client, which lives as long as the pass.
 */
#ifndef COMMBENCH_BROKER_H
#define COMMBENCH_BROKER_H

#include "../commbench_ops.h"
#include "log.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cb_cluster {
    uint32_t brokers, producers, consumers, partitions, replication;
} cb_cluster;

enum { CB_ACKS_NONE = 0, CB_ACKS_LEADER = 1, CB_ACKS_ALL = -1 };

/* Parts of a broker's design, each a switch; all off is Kafka's. */
enum {
    CB_EAGER_FLUSH = 1,     /* an answer leaves as soon as it is whole, from where it was written; else
                               piece by piece into the channel buffer, and when that is full or the
                               turn over */
    CB_BUFFER_POOL = 2,     /* requests are handled in the memory that they arrived in; else each in
                               memory allocated for it */
    CB_OVERLAPPED = 4,      /* requests of a producer are taken up while an earlier one waits; else the
                               next only after the answer */
    CB_REORDER_BROKER = 8,  /* with CB_OVERLAPPED: the broker keeps answers until their turn; else the
                               producer puts them in order */
    CB_POLLING = 16         /* this thread polls the engine without a pause and hands requests to
                               handlers in threads of their own; else it does all in turn */
};

/* The first bytes of a slot as a message. An engine may look at it until finish(), so that the memory
 * is the caller's. */
typedef struct cb_cut {
    struct iovec iov;
    cb_iov message;
} cb_cut;

static inline const cb_iov *cb_cut_of(cb_cut *cut, void *from, uint64_t nbytes)
{
    cut->iov = (struct iovec){from, nbytes};
    cut->message = (cb_iov){&cut->iov, 1, nbytes};
    return &cut->message;
}

/* ------------------------------------------------------------------ times */

/* Counts of times by the bins of commbench.histogram; the caller's memory, CB_BINS of them. */
#define CB_BINS ((63 - 7 + 1) << 7)
typedef struct cb_times {
    int64_t *counts;
    int64_t n, total, least, greatest;
} cb_times;

static inline void cb_times_add(cb_times *t, int64_t ns)
{
    if (ns < 0)
        ns = 0;             /* of a consumer whose clock is another's; counted by the caller */
    int bits = ns ? 64 - __builtin_clzll((unsigned long long)ns) : 0;
    int e = bits > 8 ? bits - 8 : 0;
    t->counts[((int64_t)e << 7) + (ns >> e)]++;
    t->total += ns;
    if (t->n++ == 0)
        t->least = t->greatest = ns;
    else if (ns < t->least)
        t->least = ns;
    else if (ns > t->greatest)
        t->greatest = ns;
}

/* ------------------------------------------------------------------ broker */

enum { CB_IDLE, CB_APPENDING, CB_REPLICATING, CB_ANSWERING };

typedef struct cb_serve_run {
    const cb_engine *engine;
    const cb_case *c;           /* request: a slot for each partition that this rank follows */
    cb_cluster who;
    int32_t rank;
    cb_cut *cuts;               /* by incoming slot, then by request slot */
    cb_log **logs;              /* by partition; NULL where this rank has no replica */
    uint32_t design;            /* CB_EAGER_FLUSH | ... */
    uint32_t handlers;          /* threads, with CB_POLLING; partitions are spread over them */
    uint64_t channel_buffer;    /* bytes, without CB_EAGER_FLUSH */
    int64_t timeout_ns;         /* longest wait for a replica, and without any request */
    int64_t fetch_wait_ns;      /* a FETCH that finds nothing is answered so late */
    /* out */
    int32_t phase;              /* what it is doing: CB_IDLE, ...; another thread may look (a test that
                                   kills the broker at chosen moments does) */
    uint64_t produced, fetched, refused;    /* requests */
    uint64_t records, deferred; /* appended as leader; requests that waited for replicas */
    uint64_t copied;            /* bytes that this loop copied, the engine's own not counted */
    uint64_t allocated;         /* buffers allocated for requests */
    uint64_t overtook;          /* requests that came before an earlier one of their rank */
    uint64_t most_waiting;      /* requests taken and not answered, at most at once */
    uint64_t rss_half, rss_end; /* resident bytes when half of the time was over, and at the end */
    int32_t peer;
    char message[256];
} cb_serve_run;

int cb_broker_serve(cb_serve_run *run);

/* ------------------------------------------------------------------ clients */

/* What a producer or consumer has throughout a pass. */
typedef struct cb_client {
    const cb_engine *engine;
    const cb_case *c;           /* a reply slot for each request slot */
    cb_cluster who;
    int32_t rank;
    cb_cut *cuts;               /* by request slot */
    uint32_t *correlations;     /* by broker: of the next request */
    int64_t timeout_ns;         /* longest wait for an answer */
    int32_t peer;
    char message[256];
} cb_client;

/* ------------------------------------------------------------------ producer */

enum {
    CB_PRODUCE_FILL = 1,        /* each record has content of its own, see cb_record_fill() */
    CB_PRODUCE_STAMP = 2,       /* the first 8 bytes of a record are its start, ns, for consumers */
    CB_PRODUCE_ANY_ORDER = 4,   /* answers may come in any order: keep them until their turn */
    CB_PRODUCE_UNORDERED = 8,   /* so may requests arrive: nothing is said of the order of answers */
    CB_PRODUCE_EAGER = 16       /* a batch leaves when it is full, from where it was built; else it is
                                   copied into the channel buffer and leaves at the end of the turn */
};

typedef struct cb_produce_run {
    cb_client *client;
    uint32_t batches_at_once;   /* in memory; at most its request slots */
    int32_t acks;               /* CB_ACKS_... */
    uint64_t record_nbytes, batch_nbytes;   /* of a value; most of a batch, which must take one */
    int64_t linger_ns;
    uint32_t max_in_flight;     /* to each broker */
    uint64_t count, warmup;     /* records in all, and of them not counted; 0: by duration */
    int64_t duration_ns, warmup_ns;
    const int64_t *schedule;    /* open loop: when each record is due, ns from the start; else NULL */
    uint64_t seed;
    uint32_t flags;
    int64_t *intended, *start, *end;    /* of the first `keep` records that count; NULL: not kept */
    uint64_t keep;
    uint64_t *sent;             /* by partition: records sent, i.e. the next sequence number */
    uint32_t window;            /* > 0: also the greatest latency of each `window` records in a row */
    cb_times latency, delay, response, windows;
    /* out */
    uint64_t records, acked, refused, counted;  /* counted: acked and not warm-up */
    uint64_t batches, nbytes;   /* requests, and bytes of their batches */
    uint64_t counted_nbytes;    /* of values */
    uint64_t copied;            /* bytes into the channel buffer */
    uint64_t reordered;         /* answers that came before an earlier request's */
    uint64_t blocked;           /* records that found no room when they were due */
    int64_t first_ns, last_ns;  /* first start and last end that count; 0: none */
} cb_produce_run;

/* Returns when every record is answered. Does not say END: see cb_broker_end(). */
int cb_produce(cb_produce_run *run);

/* ------------------------------------------------------------------ consumer */

typedef struct cb_consume_run {
    cb_client *client;          /* a request and a reply slot for each partition to read */
    const uint32_t *partitions;
    uint32_t npartitions;
    int64_t *offsets;           /* in, out: of the next record of each of them */
    int32_t only;               /* look at the records of this rank only and end when all were seen; -1:
                                   at all, and end when the producers have ended */
    const uint64_t *expected;   /* with only: by partition of the cluster, records to be seen */
    uint64_t record_nbytes, seed;
    uint32_t verify, stamped;   /* CB_PRODUCE_FILL, CB_PRODUCE_STAMP of the producers */
    cb_times end_to_end;        /* counts NULL: not wanted */
    /* out */
    uint64_t fetches, records, nbytes, validated;
    int64_t first_ns, last_ns;  /* first request and last record */
} cb_consume_run;

int cb_consume(cb_consume_run *run);
/* Where the partitions ended when the pass began, into run->offsets. */
int cb_consume_offsets(cb_consume_run *run);

/* `count` requests without a body to the first broker, one after the other: their round trips. */
int cb_client_round_trips(cb_client *client, uint32_t count, cb_times *times);

/* Tell every broker that this producer or consumer is through. Nothing may be in flight. */
int cb_client_end(cb_client *client);

/* Content of a record: cb_fill()'s, a function of producer, partition and its number in there. The
 * first `skip` bytes are left out. */
void cb_record_fill(void *value, uint64_t nbytes, uint64_t skip, uint64_t seed, int32_t producer,
                    uint32_t partition, uint32_t partitions, uint64_t number);
int cb_record_verify(const void *value, uint64_t nbytes, uint64_t skip, uint64_t seed,
                     int32_t producer, uint32_t partition, uint32_t partitions, uint64_t number);

#ifdef __cplusplus
}
#endif
#endif
