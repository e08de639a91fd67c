/* Answers: their order, their offsets, and who was refused. Part of producer.c. */
static int refused(producer *p, const batch *b, const broker_answer *a, uint64_t nbytes)
{
    cb_client *client = p->client;
    const char *reply = client->c->reply[b - p->batches].iov->iov_base;
    int32_t broker = client_leader(client, b->partition);
    p->run->refused += b->b.records;
    if (p->refusal)
        return 0;
    p->refusal = a->error;
    client_failed(client, -EREMOTEIO, broker, "rank %d refused records of partition %u: %s%s%.*s",
                  broker, b->partition, broker_error_name(a->error),
                  nbytes > BROKER_ANSWER ? ": " : "", (int)(nbytes - BROKER_ANSWER),
                  reply + BROKER_ANSWER);
    return 0;
}

/* Offsets of a partition go up, and without a gap where there is one producer. */
static int check_offset(producer *p, const batch *b, int64_t base)
{
    int64_t *end = &p->ends[b->partition];
    bool alone = p->client->who.producers == 1;
    if (*end >= 0 && (alone ? base != *end : base < *end))
        return client_failed(p->client, -EBADMSG, client_leader(p->client, b->partition),
                             "partition %u: records were given offset %lld after %lld", b->partition,
                             (long long)base, (long long)*end - 1);
    *end = base + b->b.records;
    return 0;
}

static int deliver(producer *p, uint32_t at, int64_t now)
{
    batch *b = &p->batches[at];
    broker_answer a = {0};
    uint64_t nbytes = b->nbytes;    /* of the answer, since it came */
    int rc = 0;
    if (p->run->acks != CB_ACKS_NONE) {
        rc = client_answer(p->client, client_leader(p->client, b->partition), at, nbytes,
                           b->correlation, &a);
        if (rc == 0 && a.error)
            rc = refused(p, b, &a, nbytes);
        else if (rc == 0 && (rc = check_offset(p, b, a.offset)) == 0)
            acknowledged(p, b, now);
    }
    give_back(p, at);
    return rc;
}

static void unlink_flight(producer *p, lane *l, uint32_t at)
{
    uint32_t *link = &l->first, before = NONE;
    while (*link != at) {
        before = *link;
        link = &p->batches[*link].next;
    }
    *link = p->batches[at].next;
    if (l->last == at)
        l->last = before;
    l->in_flight--;
}

/* Its answer has come. Where the client restores the order, it waits for those before it. */
static int answered(producer *p, uint32_t at, uint64_t nbytes, int64_t now)
{
    batch *b = &p->batches[at];
    lane *l = lane_of(p, b);
    int rc = 0;
    b->state = ANSWERED;
    b->nbytes = nbytes;
    p->run->reordered += l->first != at;
    if (!(p->run->flags & CB_PRODUCE_ANY_ORDER)) {
        unlink_flight(p, l, at);
        return deliver(p, at, now);
    }
    while (rc == 0 && l->first != NONE && p->batches[l->first].state == ANSWERED) {
        uint32_t first = l->first;
        unlink_flight(p, l, first);
        rc = deliver(p, first, now);
    }
    return rc;
}

static int late(producer *p, int64_t now)
{
    for (uint32_t i = 0; i < p->client->who.brokers; i++) {
        uint32_t first = p->lanes[i].first;
        if (first != NONE && now - p->batches[first].posted_ns > p->client->timeout_ns)
            return client_failed(p->client, -ETIMEDOUT, (int32_t)i, "rank %u has not acknowledged a "
                                 "request within %g s", i, (double)p->client->timeout_ns / 1e9);
    }
    return 0;
}

static int reap(producer *p, int64_t wait_ns)
{
    const cb_engine *e = p->client->engine;
    cb_done done[POLL_MAX];
    int n = e->ops->poll(e->self, done, POLL_MAX, wait_ns), rc = 0;
    if (n < 0)
        return client_engine_failed(p->client, n, -1);
    int64_t now = n > 0 || wait_ns > 0 ? cb_now_ns() : 0;
    if (n == 0)
        return wait_ns > 0 ? late(p, now) : 0;
    for (int i = 0; rc == 0 && i < n; i++) {
        if (done[i].ticket >= p->run->batches_at_once ||
            p->batches[done[i].ticket].state != FLYING)
            return client_failed(p->client, -EPROTO, -1,
                                 "the engine completed a ticket that was not posted");
        rc = answered(p, (uint32_t)done[i].ticket, done[i].reply_nbytes, now);
    }
    return rc;
}
