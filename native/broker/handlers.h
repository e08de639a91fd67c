/*
 * Handlers: threads that append, read and decide who waits, each for partitions of its own, so that a log
 * needs no lock. Part of broker.c.
 *
 * The thread that serves (it alone calls the engine) hands requests over in queues, a queue for each
 * handler, and takes back what is to be answered. A request stands in one list at a time, so that its
 * link serves all of them and nothing is allocated. Without CB_POLLING there is one handler, which is
 * no thread, and what it finishes is answered on the spot.
 */

typedef struct handler {
    struct broker *b;
    int64_t now_ns;
    uint32_t fetches_waiting;
    int64_t next_due_ns;        /* the first FETCH whose wait is over */
    int32_t open;               /* followers and partitions that have not heard of the end; atomic */
    uint64_t produced, fetched, records, deferred, copied;
    /* of a thread */
    bool is_thread;
    pthread_t thread;
    pthread_mutex_t lock;       /* of what follows, but for the counts that are looked at without */
    pthread_cond_t news;
    list arrived, finished;
    uint32_t nfinished;         /* atomic */
    bool sleeping, woken, over;
    int rc;                     /* atomic: why it has ended */
    int32_t peer;
    char message[256];
} handler;

/* ------------------------------------------------------------------ what a handler is through with */

static int complain_of(handler *h, int code, int32_t peer, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static int complain_of(handler *h, int code, int32_t peer, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(h->message, sizeof h->message, format, arguments);
    va_end(arguments);
    h->peer = peer;
    return code;
}

/* The answer of a request: nbody bytes stand behind its header in the slot. */
static int ready(handler *h, uint32_t at, int error, int16_t flags, int64_t offset,
                 int64_t high_watermark, uint32_t nbody)
{
    taken *t = &h->b->taken[at];
    t->answer = (broker_answer){t->r.correlation, t->r.partition, (int16_t)error, flags, offset,
                                high_watermark};
    t->nbody = nbody;
    if (!h->is_thread)
        return deliver(h->b, at);
    pthread_mutex_lock(&h->lock);
    append_to(h->b, &h->finished, at);
    __atomic_add_fetch(&h->nfinished, 1, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&h->lock);
    return 0;
}

static int refuse(handler *h, uint32_t at, int error)
{
    return ready(h, at, error, 0, -1, -1, 0);
}

/* With the reason in words, as far as every reply slot has room. */
static int refuse_because(handler *h, uint32_t at, int error, const char *why)
{
    size_t n = strlen(why);
    n = n < BROKER_REASON ? n : BROKER_REASON;
    memcpy(h->b->taken[at].slot + BROKER_ANSWER, why, n);
    return ready(h, at, error, 0, -1, -1, (uint32_t)n);
}

static bool producers_ended(const broker *b)
{
    return __atomic_load_n(&b->producers_left, __ATOMIC_ACQUIRE) == 0;
}

/* Partitions that a broker leads are as many apart as there are brokers. */
static handler *handler_of(const broker *b, uint32_t partition)
{
    return &b->handlers[partition / b->run->who.brokers % b->nhandlers];
}

/* One, or with CB_POLLING as many as are wanted; each knows who will have to hear of the end. */
static int make_handlers(broker *b)
{
    const cb_cluster *who = &b->run->who;
    b->nhandlers = b->run->design & CB_POLLING && b->run->handlers ? b->run->handlers : 1;
    b->handlers = calloc(b->nhandlers, sizeof *b->handlers);
    if (!b->handlers)
        return complain(b, -ENOMEM, -1, "out of memory");
    for (uint32_t i = 0; i < b->nhandlers; i++) {
        b->handlers[i] = (handler){.b = b, .peer = -1};
        b->handlers[i].arrived = b->handlers[i].finished = (list){NOBODY, NOBODY};
    }
    for (uint32_t p = 0; p < who->partitions; p++)
        if (b->parts[p].log && b->parts[p].leads)
            handler_of(b, p)->open += (int32_t)who->replication - 1;
    return 0;
}
