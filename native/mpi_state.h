/* What the mpi engine knows of a case. Part of mpi_engine.h. */
#define TAG_REQUEST 0
#define TAG_REPLY 1
#define MOST_LANES 16384u       /* TAG_REPLY + lanes stays below the least MPI_TAG_UB, 32767 */
#define SPINS_PER_LOOK 64       /* at the clock */
#define SPINS_BEFORE_YIELD 4096
#define FINISH_NS INT64_C(5000000000)

enum op_kind { ASK_SEND, ASK_RECEIVE, SERVE_RECEIVE, SERVE_SEND };

typedef struct op {             /* one MPI send or receive; at: index of its ask or slot */
    enum op_kind kind;
    uint32_t at;
    staging staging;
    handle persistent;          /* mode persistent: made for this wire, peer and tag */
    wire wire;
    int32_t peer, tag;
    uint32_t generation;
} op;

typedef struct ask {            /* a post() in flight */
    uint64_t ticket, reply_nbytes;
    cb_iov reply;
    uint32_t pending;           /* operations that are not complete */
    uint32_t peer;              /* index */
    op send, receive;
} ask;

enum slot_state { IDLE, POSTED, ARRIVED, HELD, LOOSE, ANSWERING };

typedef struct slot {           /* an incoming buffer; its index is the ticket */
    enum slot_state state;
    uint32_t peer;              /* index */
    uint64_t number, nbytes;    /* the how-manieth request of the peer; its length */
    struct iovec *cut;          /* its buffers when the message is shorter */
    op receive, send;
} slot;

typedef struct ring {
    uint32_t *at, size, head, count;
} ring;

typedef struct peer {
    int32_t rank;
    uint32_t in_flight;
    uint64_t asked, arrived;
    ring posted;                /* slots whose receives are posted, in that order */
} peer;

typedef struct mpi {
    cb_engine engine;
    library l;
    enum cb_mpi_mode mode;
    const cb_case *c;
    bool serial_server, window_server, window_asker, closing;
    uint32_t lanes, nslots, held;
    peer *peers;
    int32_t *index_of, nranks;  /* rank -> index in peers, or -1 */
    ask *asks;                  /* npeers * lanes */
    slot *slots;                /* npeers * window */
    ring done, arrived, loose;  /* asks; slots */

    handle *requests;           /* the active ones, dense; who[] says whose */
    op **who;
    int active, *indices;
    char *statuses;

    cb_done *window_done;       /* window_asker: by message of the window */
    wire *window_wires;         /* window_server: where each message lands */
    bool one_buffer;            /* window_server: all slots are the same single buffer, */
    bool window_plain;          /* and the messages of the last window filled it */
    const cb_iov *window_reply;
    uint32_t posted, batch_at, batch_n;     /* batch: window_server's, accepted so far */
} mpi;

static bool stopped(const mpi *m)
{
    return __atomic_load_n(m->c->stop, __ATOMIC_ACQUIRE) != 0;
}

static void push(ring *r, uint32_t value)
{
    uint32_t at = r->head + r->count++;
    r->at[at < r->size ? at : at - r->size] = value;
}

static uint32_t pop(ring *r)
{
    uint32_t value = r->at[r->head];
    if (++r->head == r->size)
        r->head = 0;
    r->count--;
    return value;
}

static int peer_index(mpi *m, int32_t rank)
{
    if (rank < 0 || rank >= m->nranks || m->index_of[rank] < 0)
        return refuse(&m->l, -EINVAL, "a rank that is no peer of this case");
    return m->index_of[rank];
}

static int reply_tag(const mpi *m, uint64_t number)
{
    return TAG_REPLY + (int)(number & (m->lanes - 1));
}

static status status_at(const mpi *m, int i)
{
    return m->statuses + (size_t)i * m->l.status_nbytes;
}
