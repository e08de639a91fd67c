/* What a producer holds, and its beginning and end. Part of producer.c. */

enum batch_state { FREE, FILLING, QUEUED, FLYING, ANSWERED };

typedef struct batch {          /* by request slot */
    cb_batch b;
    enum batch_state state;
    uint32_t partition, correlation;
    uint32_t next;              /* in the queue of its broker, or of those in flight */
    uint64_t first;             /* number of its first record; the others follow */
    uint64_t nbytes;            /* sealed */
    int64_t since_ns, posted_ns;
    int64_t *start;             /* by record */
} batch;

typedef struct lane {           /* to a broker */
    uint32_t head, tail;        /* batches that may leave */
    uint32_t first, last;       /* in flight, by correlation */
    uint32_t in_flight;
} lane;

typedef struct producer {
    cb_produce_run *run;
    cb_client *client;
    batch *batches;
    int64_t *starts, *ends;     /* start stamps of all batches; by partition, the offset after the last */
    uint32_t *free, nfree;
    lane *lanes;
    uint8_t *built;             /* without CB_PRODUCE_EAGER: where batches are built */
    uint8_t *template;
    uint32_t filling, partition;
    uint32_t most;              /* records of a batch */
    uint64_t left;              /* batches that are not answered */
    int64_t origin, wall_ns;    /* CLOCK_REALTIME - CLOCK_MONOTONIC */
    int64_t called_ns;          /* when the call of produce began that has found no room; 0: none */
    int64_t greatest;           /* latency of this window's records so far */
    bool over;                  /* no more records */
    int refusal;                /* the error of the first answer with one */
} producer;

/* ------------------------------------------------------------------ beginning and end */

static uint32_t most_records(const cb_produce_run *run, uint64_t room)
{
    uint64_t most = room / (run->record_nbytes + CB_RECORD_LEAST) + 1;
    return most < UINT32_MAX ? (uint32_t)most : UINT32_MAX;
}

static int64_t wall_offset_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec - cb_now_ns();
}

static int begin(producer *p, cb_produce_run *run)
{
    cb_client *client = run->client;
    uint32_t n = run->batches_at_once;
    *p = (producer){.run = run, .client = client, .filling = NONE, .wall_ns = wall_offset_ns()};
    p->most = most_records(run, run->batch_nbytes);
    if (n == 0 || n > client->c->nrequest ||
        run->batch_nbytes + BROKER_REQUEST > client->c->request[0].nbytes)
        return client_failed(client, -EINVAL, -1, "a slot is needed for each batch");
    p->batches = calloc(n, sizeof *p->batches);
    p->starts = malloc((size_t)n * p->most * sizeof *p->starts);
    p->ends = calloc(client->who.partitions, sizeof *p->ends);
    p->free = calloc(n, sizeof *p->free);
    p->lanes = calloc(client->who.brokers, sizeof *p->lanes);
    p->template = malloc(run->record_nbytes + 1);
    bool eager = run->flags & CB_PRODUCE_EAGER;
    p->built = eager ? NULL : malloc((size_t)n * run->batch_nbytes);
    if ((!eager && !p->built) || !p->batches || !p->starts || !p->ends || !p->free || !p->lanes || !p->template)
        return client_failed(client, -ENOMEM, -1, "out of memory");
    memset(p->starts, 0, (size_t)n * p->most * sizeof *p->starts);
    for (uint32_t i = 0; i < n; i++) {
        p->batches[i].start = p->starts + (size_t)i * p->most;
        p->free[p->nfree++] = n - 1 - i;
    }
    for (uint32_t i = 0; i < client->who.brokers; i++)
        p->lanes[i] = (lane){NONE, NONE, NONE, NONE, 0};
    for (uint32_t i = 0; i < client->who.partitions; i++)
        p->ends[i] = -1;
    cb_record_fill(p->template, run->record_nbytes, 0, run->seed, client->rank, 0, 1, 0);
    p->partition = (uint32_t)client->rank % client->who.partitions; /* not all begin with the same */
    return 0;
}

static void end(producer *p)
{
    void *all[] = {p->batches, p->starts, p->ends, p->free, p->lanes, p->built, p->template};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}
