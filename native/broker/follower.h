/* What a broker does as a follower: it asks the leaders of its partitions for more. Part of broker.c. */

static int ask_for_more(broker *b, uint32_t at)
{
    fetcher *f = &b->fetchers[at];
    partition *p = &b->parts[f->partition];
    const cb_engine *e = b->run->engine;
    const cb_case *c = b->run->c;
    uint8_t *slot = c->request[at].iov->iov_base;
    uint32_t most = (uint32_t)(c->reply[at].nbytes - BROKER_ANSWER);
    uint32_t nbytes = broker_put_fetch(slot, (int32_t)b->correlations[f->leader],
                                       (int32_t)f->partition, cb_log_next_offset(p->log), most);
    const cb_iov *request = cb_cut_of(&b->run->cuts[c->nincoming + at], slot, nbytes);
    int rc = e->ops->post(e->self, f->leader, at, request, &c->reply[at]);
    if (rc == -EAGAIN)          /* its window is full: in a later turn */
        return 0;
    if (rc < 0)
        return engine_says(b, rc, f->leader);
    b->correlations[f->leader]++;
    f->asking = true;
    f->since_ns = b->now_ns;
    return 0;
}

static int ask_leaders(broker *b)
{
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < b->nfetchers; i++)
        if (!b->fetchers[i].asking && !b->parts[b->fetchers[i].partition].done)
            rc = ask_for_more(b, i);
    return rc;
}

/* The leader came back with fewer records than we have. */
static int follow_back(broker *b, const fetcher *f, partition *p, int64_t next)
{
    int64_t rc = cb_log_truncate(p->log, next);
    if (rc < 0)
        return complain(b, (int)rc, f->leader, "partition %u: rank %d ends at offset %lld and we do "
                        "not: %s", f->partition, f->leader, (long long)next,
                        cb_log_last_error(p->log));
    return 0;
}

static int replicate(broker *b, uint32_t at, uint64_t nbytes)
{
    fetcher *f = &b->fetchers[at];
    partition *p = &b->parts[f->partition];
    const uint8_t *reply = b->run->c->reply[at].iov->iov_base;
    broker_answer a = {0};
    f->asking = false;
    if (broker_read_answer(reply, nbytes, &a) < 0 || a.partition != (int32_t)f->partition)
        return complain(b, -EPROTO, f->leader, "rank %d answered a FETCH with %llu bytes that are no "
                        "answer", f->leader, (unsigned long long)nbytes);
    if (a.error == BROKER_OFFSET_OUT_OF_RANGE)
        return follow_back(b, f, p, a.offset);
    if (a.error)
        return complain(b, -EREMOTEIO, f->leader, "rank %d refused a FETCH of partition %u: %s",
                        f->leader, f->partition, broker_error_name(a.error));
    int64_t next = cb_log_next_offset(p->log);
    if (nbytes > BROKER_ANSWER)
        next = cb_log_append_replica(p->log, reply + BROKER_ANSWER, nbytes - BROKER_ANSWER);
    if (next < 0)
        return complain(b, (int)next, f->leader, "partition %u: what rank %d sent cannot be appended: "
                        "%s", f->partition, f->leader, cb_log_last_error(p->log));
    int64_t mark = a.high_watermark < next ? a.high_watermark : next;
    if (mark > cb_log_high_watermark(p->log))
        cb_log_set_high_watermark(p->log, mark);
    p->done = (a.flags & BROKER_ENDED) && next == a.offset;
    return 0;
}

static int take_answers(broker *b)
{
    const cb_engine *e = b->run->engine;
    cb_done done[ACCEPT_MAX];
    int n = e->ops->poll(e->self, done, ACCEPT_MAX, 0), rc = 0;
    if (n < 0)
        return engine_says(b, n, -1);
    for (int i = 0; rc == 0 && i < n; i++) {
        if (done[i].ticket >= b->nfetchers)
            return complain(b, -EPROTO, -1, "the engine completed a ticket that was not posted");
        rc = replicate(b, (uint32_t)done[i].ticket, done[i].reply_nbytes);
    }
    return rc;
}
