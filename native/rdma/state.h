/* What the engine knows. Part of engine.c. */
enum { BATCH_MAX = 16, SGE_MAX = 32, CQ_BATCH = 16 };

typedef struct ring {           /* of 32-bit values; never overfull */
    uint32_t *at, head, count, size;
} ring;

typedef struct pool {           /* see coalesce.h */
    char *pages;
    uint64_t nbytes, block;     /* block: bytes of one message; 0: there is no pool */
    struct iovec *iov;          /* `most` for each block */
    uint32_t most;
} pool;

typedef struct flight {         /* a message of ours, from post() to poll() */
    uint64_t ticket, reply_nbytes;
    const cb_iov *request, *reply;
    uint64_t wr;                /* work request that carried it, or its RTS */
    uint64_t moved;             /* bytes of the request written by rendezvous, or announced */
    uint64_t landed;            /* bytes of the reply that are asked for */
    bool busy, due;             /* due: not finished yet */
    cb_iov joined;              /* the request, as coalesce() left it */
    enum way way;
    int64_t since;              /* when it was posted; 0: nobody learns from it */
} flight;

enum arrival_state { FREE, COMING, COMPLETE, ARRIVED, OPEN };

typedef struct arrival {        /* an incoming slot; its index is the ticket */
    cb_incoming in;
    struct iovec *cut;          /* for a message shorter than the slot */
    cb_iov answer;
    uint64_t moved;             /* of the answer */
    uint64_t landed;            /* of the request: read, or asked for */
    enum way way;               /* of the answer */
    enum arrival_state state;
} arrival;

/* A frame that waits for credits. */
enum out_kind { OUT_REQUEST, OUT_ANSWER, OUT_CTS_REQUEST, OUT_CTS_REPLY, OUT_FIN_REQUEST,
                OUT_FIN_REPLY, OUT_SETTLE, OUT_KINDS };

/* What becomes of a work request's completion: in the order of the work requests. */
enum after_kind { AFTER_DONE, AFTER_READ_REQUEST, AFTER_READ_REPLY };
typedef struct after {
    uint64_t wr;
    enum after_kind kind;
    uint32_t slot;
} after;

typedef struct conn {
    struct rdma *r;
    int32_t peer;
    struct ibv_qp *qp;          /* NULL: this rank */
    uint32_t psn;
    cb_rdma_endpoint theirs;
    /* receiving */
    char *ring;
    uint32_t *length;           /* by frame, of a SEND */
    bool *bare;                 /* by frame: it has no tail */
    uint32_t *entry;            /* by frame: where it lies among all entries, if they are shared */
    uint32_t came, head;        /* frames that came (by completions), and were taken */
    frame_tail heard;           /* of the last frame that was taken */
    uint32_t freed;             /* frames whose entries are the peer's again */
    uint32_t told;              /* how many those were when we last said so */
    /* sending */
    frame_tail *tails;          /* by entry of their ring */
    frame_tail said;            /* of the last frame that was sent */
    char *stage;                /* by entry; made when first needed */
    struct ibv_mr *tails_mr, *stage_mr;
    uint32_t sent, credited;    /* frames; how many of them the peer has taken */
    uint64_t wr, wr_done, wr_signalled; /* work requests: posted, known to be done, last signalled */
    uint64_t wr_replied;        /* the last one that will bring a reply */
    uint64_t wr_proven;         /* up to here the peer has all: it has replied */
    bool lost;
    /* a case */
    bool active;
    uint32_t base;              /* its first flight and arrival */
    adapter adapter;            /* of requests */
    bool announced[SIZE_CLASSES];   /* the peer's last request of this class was; answers do alike */
    ring free;                  /* flights not in use */
    ring queue;                 /* frames that wait: out_kind | slot << 4 */
    ring order;                 /* incoming slots by their first frames */
    after *afters;              /* a ring */
    uint32_t after_head, after_count, after_size;
    uint32_t settled, settling; /* SETTLEs that came, and that we sent */
} conn;

struct rdma {
    cb_engine engine;
    cb_rdma_options o;
    cb_rdma_limits limits;
    struct ibv_context *context;
    struct ibv_pd *pd;
    struct ibv_comp_channel *events;
    struct ibv_cq *send_cq, *recv_cq;
    struct ibv_srq *srq;        /* NULL: each queue pair has a receive queue of its own */
    conn **by_qpn;              /* the owner of a frame that came through it; a hash table */
    uint32_t nby_qpn;           /* its size, a power of two */
    struct ibv_mr *rings_mr;
    char *rings;                /* a ring for each peer, or the entries that they share */
    size_t rings_nbytes;
    uint32_t depth;             /* frames that a peer may have sent ahead, a power of two */
    uint32_t stride, max_sge;
    uint32_t piece;             /* bytes that one work request of a rendezvous moves at most */
    conn *conns;                /* by rank */
    /* a case */
    const cb_case *c;           /* NULL between cases */
    conn **active;
    uint32_t nactive;
    conn *lone;                 /* the one peer of a case that has one message in flight; see lone.h */
    flight *flights;
    arrival *arrivals;
    struct iovec *cuts;
    ring done, arrived, given;
    regions regions;
    pool pool;
    /* work requests that are being put together for one doorbell */
    conn *batching;
    conn *again;                /* wrs[0] is the frame without a tail that went to it last */
    const void *again_from;     /* its one buffer */
    uint32_t batched;
    struct ibv_send_wr wrs[BATCH_MAX];
    struct ibv_sge sges[BATCH_MAX][SGE_MAX];
    uint32_t looks, nafters;
    uint64_t copied, bytes_sent;
    char name[64], error[256];      /* name: of the device */
};
typedef struct rdma rdma;

static int refuse(rdma *r, int code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(r->error, sizeof r->error, format, arguments);
    va_end(arguments);
    return code;
}

/* For deadlines; nothing is measured with it. */
static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static bool stopped(const rdma *r)
{
    return r->c && __atomic_load_n(r->c->stop, __ATOMIC_RELAXED) != 0;
}

static bool ring_init(ring *r, uint32_t size)
{
    *r = (ring){.at = malloc(((size_t)size + 1) * sizeof *r->at), .size = size};
    return r->at != NULL;
}

static void ring_free(ring *r)
{
    free(r->at);
    *r = (ring){0};
}

static void push(ring *r, uint32_t value)
{
    uint32_t at = r->head + r->count++;
    r->at[at < r->size ? at : at - r->size] = value;
}

static uint32_t pop(ring *r)
{
    uint32_t value = r->at[r->head];
    r->head = r->head + 1 < r->size ? r->head + 1 : 0;
    r->count--;
    return value;
}

static flight *flight_at(conn *c, uint32_t slot)
{
    return &c->r->flights[c->base + slot];
}

static arrival *arrival_at(conn *c, uint32_t slot)
{
    return &c->r->arrivals[c->base + slot];
}

/* What a frame says whose tail was left out: what follows from the one before it. */
static inline uint32_t next_slot(const conn *c, uint32_t slot)
{
    return slot + 1 < c->r->c->window ? slot + 1 : 0;
}

static inline uint32_t next_consumed(const frame_tail *before)
{
    return before->consumed + (before->kind != FRAME_ONE_WAY);
}

/* What op=write watches. */
static inline uint32_t *last_word(const conn *c, uint32_t entry)
{
    return (uint32_t *)(c->ring + (size_t)(entry + 1) * c->r->stride) - 1;
}

/* The entry of frame `seq`, for that frame. */
static inline void mark_untouched(conn *c, uint32_t seq)
{
    __atomic_store_n(last_word(c, (seq - 1) & (c->r->depth - 1)), UNTOUCHED(seq), __ATOMIC_RELEASE);
}

static inline void hand_out(conn *c, uint32_t slot)
{
    arrival_at(c, slot)->state = ARRIVED;
    push(&c->r->arrived, c->base + slot);
}

/* Requests go to the application in the order in which they were begun. */
static void deliver(conn *c)
{
    while (c->order.count > 0) {
        uint32_t slot = c->order.at[c->order.head];
        if (arrival_at(c, slot)->state != COMPLETE)
            return;
        hand_out(c, slot);
        pop(&c->order);
    }
}
