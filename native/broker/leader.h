/* What a handler does with PRODUCE and FETCH of the partitions that this rank leads. Part of broker.c. */

/* The kind of failure of an append, in Kafka's words. */
static int error_of(int64_t rc)
{
    switch (rc) {
    case -EBADMSG: return BROKER_CORRUPT_MESSAGE;
    case -EMSGSIZE: return BROKER_MESSAGE_TOO_LARGE;
    default: return BROKER_STORAGE;
    }
}

static bool followers_have(const handler *h, const partition *p, int64_t offset)
{
    for (uint32_t i = 1; i < h->b->run->who.replication; i++)
        if (p->confirmed[i] < offset)
            return false;
    return true;
}

/* ------------------------------------------------------------------ FETCH */

/* As much as fits the request's own slot, up to `limit`; 0 when there is nothing. */
static int answer_fetch(handler *h, uint32_t at, partition *p, int64_t limit)
{
    taken *t = &h->b->taken[at];
    uint64_t room = h->b->run->c->incoming[at].nbytes - BROKER_ANSWER;
    int64_t next = t->r.offset, n = 0;
    if (t->r.most < room)
        room = t->r.most;
    if (t->r.offset < limit)
        n = cb_log_read(p->log, t->r.offset, limit, t->slot + BROKER_ANSWER, room, &next);
    if (n < 0)
        return refuse(h, at, n == -EMSGSIZE ? BROKER_MESSAGE_TOO_LARGE : BROKER_STORAGE);
    h->copied += (uint64_t)n;
    bool over = producers_ended(h->b);
    return ready(h, at, BROKER_OK, over ? BROKER_ENDED : 0, cb_log_next_offset(p->log),
                 p->high_watermark, (uint32_t)n);
}

/* What a follower may see, or a consumer. */
static int64_t limit_for(const handler *h, const partition *p, int32_t peer)
{
    return peer < (int32_t)h->b->run->who.brokers ? cb_log_next_offset(p->log) : p->high_watermark;
}

/* Everything is there, and more will not come: what a waiting FETCH need not wait for. */
static bool is_over(const handler *h, const partition *p, int32_t peer)
{
    return producers_ended(h->b) &&
           (peer < (int32_t)h->b->run->who.brokers || p->high_watermark == cb_log_next_offset(p->log));
}

static void has_heard(handler *h, partition *p, uint32_t replica)
{
    if (!p->through[replica])
        __atomic_sub_fetch(&h->open, 1, __ATOMIC_RELEASE);
    p->through[replica] = true;
}

static int fetch_now(handler *h, uint32_t at, partition *p)
{
    taken *t = &h->b->taken[at];
    if (t->peer < (int32_t)h->b->run->who.brokers && is_over(h, p, t->peer) &&
        t->r.offset == cb_log_next_offset(p->log))
        has_heard(h, p, replica_of(&h->b->run->who, (uint32_t)t->r.partition, (uint32_t)t->peer));
    return answer_fetch(h, at, p, limit_for(h, p, t->peer));
}

static void let_wait(handler *h, uint32_t at, partition *p)
{
    taken *t = &h->b->taken[at];
    append_to(h->b, &p->fetches, at);
    if (h->fetches_waiting++ == 0 || t->until_ns < h->next_due_ns)
        h->next_due_ns = t->until_ns;
}

/* Answers the waiting FETCHes that find something now, or whose time is over. */
static int wake_fetches(handler *h, partition *p)
{
    list waiting = p->fetches;
    int rc = 0;
    p->fetches = (list){NOBODY, NOBODY};
    while (rc == 0 && waiting.head != NOBODY) {
        uint32_t at = take_first(h->b, &waiting);
        taken *t = &h->b->taken[at];
        h->fetches_waiting--;
        if (t->r.offset < limit_for(h, p, t->peer) || is_over(h, p, t->peer) ||
            t->until_ns <= h->now_ns)
            rc = fetch_now(h, at, p);
        else
            let_wait(h, at, p);
    }
    return rc;
}

/* ------------------------------------------------------------------ the high watermark */

/* Every replica has the records before it: then their producers learn so, and consumers see them. */
static int move_high_watermark(handler *h, partition *p)
{
    int64_t mark = cb_log_next_offset(p->log);
    int rc = 0;
    for (uint32_t i = 1; i < h->b->run->who.replication; i++)
        if (p->confirmed[i] < mark)
            mark = p->confirmed[i];
    if (mark <= p->high_watermark)
        return 0;
    p->high_watermark = mark;
    cb_log_set_high_watermark(p->log, mark);
    while (rc == 0 && p->acks.head != NOBODY && h->b->taken[p->acks.head].end <= mark) {
        uint32_t at = take_first(h->b, &p->acks);
        rc = ready(h, at, BROKER_OK, 0, h->b->taken[at].base, mark, 0);
    }
    return rc < 0 ? rc : wake_fetches(h, p);
}

/* ------------------------------------------------------------------ requests */

static int on_produce(handler *h, uint32_t at, partition *p)
{
    taken *t = &h->b->taken[at];
    cb_batch_info info;
    if (t->r.acks < CB_ACKS_ALL || t->r.acks > CB_ACKS_LEADER)
        return refuse(h, at, BROKER_INVALID_ACKS);
    enter(h->b, CB_APPENDING);
    int64_t base = cb_log_append(p->log, t->r.body, t->r.nbody);
    if (base < 0)
        return refuse_because(h, at, error_of(base), cb_log_last_error(p->log));
    cb_batch_header(t->r.body, t->r.nbody, &info);
    t->base = base;
    t->end = base + info.records;
    h->produced++;
    h->records += info.records;
    int rc = 0;
    if (t->r.acks == CB_ACKS_ALL && !followers_have(h, p, t->end)) {
            t->until_ns = h->now_ns + h->b->run->timeout_ns;
        h->deferred++;
        append_to(h->b, &p->acks, at);
    } else {
        rc = ready(h, at, BROKER_OK, 0, base, p->high_watermark, 0);
    }
    if (rc < 0 || h->b->run->who.replication > 1)
        return rc < 0 ? rc : wake_fetches(h, p);
    return move_high_watermark(h, p);
}

static int on_fetch(handler *h, uint32_t at, partition *p)
{
    taken *t = &h->b->taken[at];
    int64_t next = cb_log_next_offset(p->log);
    int rc = 0;
    h->fetched++;
    if (t->r.offset < cb_log_first_offset(p->log) || t->r.offset > next)
        return ready(h, at, BROKER_OFFSET_OUT_OF_RANGE, 0, next, p->high_watermark, 0);
    if (t->peer < (int32_t)h->b->run->who.brokers) {
        uint32_t replica = replica_of(&h->b->run->who, (uint32_t)t->r.partition, (uint32_t)t->peer);
        if (replica == 0 || replica >= h->b->run->who.replication)
            return refuse(h, at, BROKER_INVALID_REQUEST);
        enter(h->b, CB_REPLICATING);
        p->confirmed[replica] = t->r.offset;
        rc = move_high_watermark(h, p);
    }
    if (rc < 0)
        return rc;
    if (t->r.offset < limit_for(h, p, t->peer) || is_over(h, p, t->peer))
        return fetch_now(h, at, p);
    t->until_ns = h->now_ns + h->b->run->fetch_wait_ns;
    let_wait(h, at, p);
    return 0;
}

static int handle(handler *h, uint32_t at)
{
    taken *t = &h->b->taken[at];
    if (t->error)
        return refuse(h, at, t->error);
    if (t->r.partition < 0 || (uint32_t)t->r.partition >= h->b->run->who.partitions)
        return refuse(h, at, BROKER_UNKNOWN_PARTITION);
    partition *p = &h->b->parts[t->r.partition];
    if (!p->log || !p->leads)
        return refuse(h, at, BROKER_NOT_LEADER);
    switch (t->r.api) {
    case BROKER_PRODUCE: return on_produce(h, at, p);
    case BROKER_FETCH: return on_fetch(h, at, p);
    case BROKER_OFFSETS: return ready(h, at, BROKER_OK, 0, p->began, p->high_watermark, 0);
    default: return refuse(h, at, BROKER_UNSUPPORTED);
    }
}
