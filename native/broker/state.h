/* What a broker holds while it serves. Part of broker.c. */

enum request_state { IDLE, QUEUED, READY };

#define NOBODY UINT32_MAX

typedef struct taken {          /* a request, by the incoming slot that it arrived in */
    uint64_t ticket;
    int32_t peer;
    enum request_state state;
    uint8_t *slot;              /* its memory: where the answer is written */
    uint8_t *bytes, *heap;      /* the request: in the slot, or in memory allocated for it */
    uint64_t nbytes;
    broker_request r;
    int error;
    int64_t base, end;          /* PRODUCE: offsets of its records */
    int64_t until_ns;           /* when its wait is over */
    uint32_t next;              /* in the list that it stands in */
    uint32_t later;             /* of the same connection, by correlation */
    broker_answer answer;       /* finished */
    uint32_t nbody;             /* finished: bytes behind its header, in the slot */
    uint64_t answer_nbytes;     /* READY */
    uint8_t head[BROKER_ANSWER];    /* without CB_EAGER_FLUSH: the answer until it is written */
    uint64_t written;           /* bytes of the answer that the channel has */
} taken;

typedef struct list {           /* of indices of `taken`, linked by next */
    uint32_t head, tail;
} list;

typedef struct connection {     /* a rank that asks us */
    int32_t peer;
    uint32_t expected;          /* the correlation that is taken up next */
    uint32_t queue;             /* arrived and not taken up, by correlation, linked by later */
    uint32_t answers;           /* PRODUCE taken up and not answered, by correlation */
    uint32_t last;              /* the last of these */
    uint32_t unsent;            /* PRODUCE taken up whose answer has not left */
    bool ended;                 /* of a producer or consumer */
} connection;

typedef struct partition {
    cb_log *log;                /* NULL: this rank has no replica */
    bool leads;
    int64_t began;              /* where the log ended when the pass began */
    int64_t high_watermark;
    int64_t *confirmed;         /* leader: by follower, the offset that it asked for */
    bool *through;              /* leader: that follower has been told that this is the end */
    list acks;                  /* leader: PRODUCE with acks=all, in the order of their offsets */
    list fetches;               /* leader: FETCH that found nothing */
    uint32_t fetcher;           /* follower: its request slot */
    bool done;                  /* follower: the leader has ended and we have it all */
} partition;

typedef struct fetcher {        /* a partition that this rank follows */
    uint32_t partition;
    int32_t leader;
    bool asking;
    int64_t since_ns;
} fetcher;

struct handler;

typedef struct broker {
    cb_serve_run *run;
    struct handler *handlers;
    uint32_t nhandlers;         /* at least one */
    taken *taken;               /* by incoming slot */
    uint8_t *stray;             /* an answer to what came in no slot of ours */
    cb_cut stray_cut;
    connection *conns;          /* by index of c->peers */
    uint32_t *conn_of;          /* by rank */
    partition *parts;
    fetcher *fetchers;
    uint32_t nfetchers, nranks;
    uint32_t *correlations;     /* of our own requests, by broker */
    list outbox;                /* whole answers in the channel buffer */
    uint64_t boxed;             /* bytes in there */
    uint32_t producers_left;    /* atomic: handlers look at it */
    uint32_t clients_left;
    uint32_t waiting;           /* requests taken and not answered */
    int64_t now_ns, quiet_ns;   /* this turn; the last request of a producer or consumer */
} broker;

static int complain(broker *b, int code, int32_t peer, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static int complain(broker *b, int code, int32_t peer, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(b->run->message, sizeof b->run->message, format, arguments);
    va_end(arguments);
    b->run->peer = peer;
    return code;
}

static int engine_says(broker *b, int code, int32_t peer)
{
    const cb_engine *e = b->run->engine;
    return complain(b, code, peer, "%s", e->ops->last_error(e->self));
}

static void enter(broker *b, int32_t phase)
{
    __atomic_store_n(&b->run->phase, phase, __ATOMIC_RELAXED);
}

static void append_to(broker *b, list *l, uint32_t at)
{
    b->taken[at].next = NOBODY;
    if (l->head == NOBODY)
        l->head = at;
    else
        b->taken[l->tail].next = at;
    l->tail = at;
}

static uint32_t take_first(broker *b, list *l)
{
    uint32_t at = l->head;
    l->head = b->taken[at].next;
    return at;
}

/* ------------------------------------------------------------------ who is who */

static int32_t leader_of(const cb_cluster *who, uint32_t partition)
{
    return (int32_t)(partition % who->brokers);
}

/* Which replica of a partition a broker is: 0 the leader, below replication a follower. */
static uint32_t replica_of(const cb_cluster *who, uint32_t partition, uint32_t broker)
{
    return (broker + who->brokers - partition % who->brokers) % who->brokers;
}

static int32_t rank_of_replica(const cb_cluster *who, uint32_t partition, uint32_t replica)
{
    return (int32_t)((partition + replica) % who->brokers);
}

static bool is_producer(const cb_cluster *who, int32_t rank)
{
    return rank >= (int32_t)who->brokers && rank < (int32_t)(who->brokers + who->producers);
}

/* ------------------------------------------------------------------ beginning and end */

static int make_partition(broker *b, uint32_t at)
{
    const cb_cluster *who = &b->run->who;
    partition *p = &b->parts[at];
    uint32_t replica = replica_of(who, at, (uint32_t)b->run->rank);
    *p = (partition){.log = b->run->logs[at], .leads = replica == 0,
                     .acks = {NOBODY, NOBODY}, .fetches = {NOBODY, NOBODY}};
    if (replica >= who->replication)
        p->log = NULL;
    else if (!p->log)
        return complain(b, -EINVAL, -1, "a replica of partition %u has no log", at);
    if (!p->log)
        return 0;
    p->began = cb_log_next_offset(p->log);
    p->high_watermark = cb_log_high_watermark(p->log);
    if (!p->leads) {
        b->fetchers[b->nfetchers] = (fetcher){at, leader_of(who, at), false, 0};
        p->fetcher = b->nfetchers++;
        return 0;
    }
    p->confirmed = calloc(who->replication, sizeof *p->confirmed);
    p->through = calloc(who->replication, sizeof *p->through);
    if (who->replication == 1)
        p->high_watermark = p->began;
    return p->confirmed && p->through ? 0 : complain(b, -ENOMEM, -1, "out of memory");
}

static int make_connections(broker *b)
{
    const cb_case *c = b->run->c;
    for (uint32_t i = 0; i < b->nranks; i++)
        b->conn_of[i] = NOBODY;
    for (uint32_t i = 0; i < c->npeers; i++) {
        if (c->peers[i] < 0 || (uint32_t)c->peers[i] >= b->nranks)
            return complain(b, -EINVAL, c->peers[i], "a peer is no rank of the cluster");
        b->conns[i] = (connection){c->peers[i], 0, NOBODY, NOBODY, NOBODY, 0, false};
        b->conn_of[c->peers[i]] = i;
    }
    return 0;
}

static int begin(broker *b, cb_serve_run *run)
{
    const cb_case *c = run->c;
    const cb_cluster *who = &run->who;
    *b = (broker){.run = run, .outbox = {NOBODY, NOBODY},
                  .nranks = who->brokers + who->producers + who->consumers,
                  .producers_left = who->producers,
                  .clients_left = who->producers + who->consumers};
    b->taken = calloc((size_t)c->nincoming + 1, sizeof *b->taken);
    b->stray = calloc(1, BROKER_ANSWER);
    b->conns = calloc((size_t)c->npeers + 1, sizeof *b->conns);
    b->conn_of = calloc(b->nranks, sizeof *b->conn_of);
    b->parts = calloc(who->partitions, sizeof *b->parts);
    b->fetchers = calloc(who->partitions, sizeof *b->fetchers);
    b->correlations = calloc(who->brokers, sizeof *b->correlations);
    if (!b->taken || !b->stray || !b->conns || !b->conn_of || !b->parts || !b->fetchers ||
        !b->correlations)
        return complain(b, -ENOMEM, -1, "out of memory");
    int rc = make_connections(b);
    for (uint32_t p = 0; rc == 0 && p < who->partitions; p++)
        rc = make_partition(b, p);
    if (rc == 0 && b->nfetchers > c->nrequest)
        rc = complain(b, -EINVAL, -1, "a request slot is needed for each partition followed");
    b->quiet_ns = b->now_ns = cb_now_ns();
    return rc;
}

static void end(broker *b)
{
    for (uint32_t i = 0; b->taken && i < b->run->c->nincoming; i++)
        free(b->taken[i].heap);
    for (uint32_t p = 0; b->parts && p < b->run->who.partitions; p++) {
        free(b->parts[p].confirmed);
        free(b->parts[p].through);
    }
    void *all[] = {b->taken, b->stray, b->conns, b->conn_of, b->parts, b->fetchers,
                   b->correlations};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}
