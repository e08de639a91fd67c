/* What a leader does with PRODUCE and FETCH. Part of broker.c. */

/* The kind of failure of an append, in Kafka's words. */
static int error_of(int64_t rc)
{
    switch (rc) {
    case -EBADMSG: return BROKER_CORRUPT_MESSAGE;
    case -EMSGSIZE: return BROKER_MESSAGE_TOO_LARGE;
    default: return BROKER_STORAGE;
    }
}

static bool followers_have(const broker *b, const partition *p, int64_t offset)
{
    for (uint32_t i = 1; i < b->run->who.replication; i++)
        if (p->confirmed[i] < offset)
            return false;
    return true;
}

/* ------------------------------------------------------------------ FETCH */

/* As much as fits the request's own slot, up to `limit`; 0 when there is nothing. */
static int answer_fetch(broker *b, uint32_t at, partition *p, int64_t limit)
{
    taken *t = &b->taken[at];
    uint64_t room = b->run->c->incoming[at].nbytes - BROKER_ANSWER;
    int64_t next = t->r.offset, n = 0;
    if (t->r.most < room)
        room = t->r.most;
    if (t->r.offset < limit)
        n = cb_log_read(p->log, t->r.offset, limit, t->slot + BROKER_ANSWER, room, &next);
    if (n < 0)
        return refuse(b, at, n == -EMSGSIZE ? BROKER_MESSAGE_TOO_LARGE : BROKER_STORAGE);
    b->run->copied += (uint64_t)n;
    bool over = b->producers_left == 0;
    return ready(b, at, BROKER_OK, over ? BROKER_ENDED : 0, cb_log_next_offset(p->log),
                 p->high_watermark, (uint32_t)n);
}

/* What a follower may see, or a consumer. */
static int64_t limit_for(const broker *b, const partition *p, int32_t peer)
{
    return peer < (int32_t)b->run->who.brokers ? cb_log_next_offset(p->log) : p->high_watermark;
}

/* Everything is there, and more will not come: what a waiting FETCH need not wait for. */
static bool is_over(const broker *b, const partition *p, int32_t peer)
{
    return b->producers_left == 0 &&
           (peer < (int32_t)b->run->who.brokers || p->high_watermark == cb_log_next_offset(p->log));
}

static int fetch_now(broker *b, uint32_t at, partition *p)
{
    taken *t = &b->taken[at];
    if (t->peer < (int32_t)b->run->who.brokers && is_over(b, p, t->peer) &&
        t->r.offset == cb_log_next_offset(p->log))
        p->through[replica_of(&b->run->who, (uint32_t)t->r.partition, (uint32_t)t->peer)] = true;
    return answer_fetch(b, at, p, limit_for(b, p, t->peer));
}

static void let_wait(broker *b, uint32_t at, partition *p)
{
    taken *t = &b->taken[at];
    t->state = WAITING;
    append_to(b, &p->fetches, at);
    if (b->fetches_waiting++ == 0 || t->until_ns < b->next_due_ns)
        b->next_due_ns = t->until_ns;
}

/* Answers the waiting FETCHes that find something now, or whose time is over. */
static int wake_fetches(broker *b, partition *p)
{
    list waiting = p->fetches;
    int rc = 0;
    p->fetches = (list){NOBODY, NOBODY};
    while (rc == 0 && waiting.head != NOBODY) {
        uint32_t at = take_first(b, &waiting);
        taken *t = &b->taken[at];
        b->fetches_waiting--;
        if (t->r.offset < limit_for(b, p, t->peer) || is_over(b, p, t->peer) ||
            t->until_ns <= b->now_ns)
            rc = fetch_now(b, at, p);
        else
            let_wait(b, at, p);
    }
    return rc;
}

/* ------------------------------------------------------------------ the high watermark */

/* Every replica has the records before it: then their producers learn so, and consumers see them. */
static int move_high_watermark(broker *b, partition *p)
{
    int64_t mark = cb_log_next_offset(p->log);
    int rc = 0;
    for (uint32_t i = 1; i < b->run->who.replication; i++)
        if (p->confirmed[i] < mark)
            mark = p->confirmed[i];
    if (mark <= p->high_watermark)
        return 0;
    p->high_watermark = mark;
    cb_log_set_high_watermark(p->log, mark);
    while (rc == 0 && p->acks.head != NOBODY && b->taken[p->acks.head].end <= mark) {
        uint32_t at = take_first(b, &p->acks);
        rc = ready(b, at, BROKER_OK, 0, b->taken[at].base, mark, 0);
    }
    return rc < 0 ? rc : wake_fetches(b, p);
}

/* ------------------------------------------------------------------ requests */

static int on_produce(broker *b, uint32_t at, partition *p)
{
    taken *t = &b->taken[at];
    cb_batch_info info;
    if (t->r.acks < CB_ACKS_ALL || t->r.acks > CB_ACKS_LEADER)
        return refuse(b, at, BROKER_INVALID_ACKS);
    enter(b, CB_APPENDING);
    int64_t base = cb_log_append(p->log, t->r.body, t->r.nbody);
    if (base < 0)
        return refuse_because(b, at, error_of(base), cb_log_last_error(p->log));
    cb_batch_header(t->r.body, t->r.nbody, &info);
    t->base = base;
    t->end = base + info.records;
    b->run->produced++;
    b->run->records += info.records;
    int rc = 0;
    if (t->r.acks == CB_ACKS_ALL && !followers_have(b, p, t->end)) {
        t->state = WAITING;
        t->until_ns = b->now_ns + b->run->timeout_ns;
        b->run->deferred++;
        append_to(b, &p->acks, at);
    } else {
        rc = ready(b, at, BROKER_OK, 0, base, p->high_watermark, 0);
    }
    if (rc < 0 || b->run->who.replication > 1)
        return rc < 0 ? rc : wake_fetches(b, p);
    return move_high_watermark(b, p);
}

static int on_fetch(broker *b, uint32_t at, partition *p)
{
    taken *t = &b->taken[at];
    int64_t next = cb_log_next_offset(p->log);
    int rc = 0;
    b->run->fetched++;
    if (t->r.offset < cb_log_first_offset(p->log) || t->r.offset > next)
        return ready(b, at, BROKER_OFFSET_OUT_OF_RANGE, 0, next, p->high_watermark, 0);
    if (t->peer < (int32_t)b->run->who.brokers) {
        uint32_t replica = replica_of(&b->run->who, (uint32_t)t->r.partition, (uint32_t)t->peer);
        if (replica == 0 || replica >= b->run->who.replication)
            return refuse(b, at, BROKER_INVALID_REQUEST);
        enter(b, CB_REPLICATING);
        p->confirmed[replica] = t->r.offset;
        rc = move_high_watermark(b, p);
    }
    if (rc < 0)
        return rc;
    if (t->r.offset < limit_for(b, p, t->peer) || is_over(b, p, t->peer))
        return fetch_now(b, at, p);
    t->until_ns = b->now_ns + b->run->fetch_wait_ns;
    let_wait(b, at, p);
    return 0;
}

static int on_end(broker *b, uint32_t at)
{
    taken *t = &b->taken[at];
    connection *n = conn_of(b, t->peer);
    int rc = 0;
    if (n->ended || t->peer < (int32_t)b->run->who.brokers)
        return refuse(b, at, BROKER_INVALID_REQUEST);
    n->ended = true;
    b->clients_left--;
    if (is_producer(&b->run->who, t->peer))
        b->producers_left--;
    if ((rc = ready(b, at, BROKER_OK, 0, 0, 0, 0)) < 0 || b->producers_left > 0)
        return rc;
    for (uint32_t i = 0; rc == 0 && i < b->run->who.partitions; i++)
        if (b->parts[i].log && b->parts[i].leads)
            rc = wake_fetches(b, &b->parts[i]);
    return rc;
}

static int handle(broker *b, uint32_t at)
{
    taken *t = &b->taken[at];
    if (t->error)
        return refuse(b, at, t->error);
    if (t->r.api == BROKER_END)
        return on_end(b, at);
    if (t->r.partition < 0 || (uint32_t)t->r.partition >= b->run->who.partitions)
        return refuse(b, at, BROKER_UNKNOWN_PARTITION);
    partition *p = &b->parts[t->r.partition];
    if (!p->log || !p->leads)
        return refuse(b, at, BROKER_NOT_LEADER);
    switch (t->r.api) {
    case BROKER_PRODUCE: return on_produce(b, at, p);
    case BROKER_FETCH: return on_fetch(b, at, p);
    case BROKER_OFFSETS: return ready(b, at, BROKER_OK, 0, p->began, p->high_watermark, 0);
    default: return refuse(b, at, BROKER_UNSUPPORTED);
    }
}
