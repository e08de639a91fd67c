/* Answers: their order, the channel buffer. Part of broker.c. */

static connection *conn_of(broker *b, int32_t rank)
{
    return &b->conns[b->conn_of[rank]];
}

static int send_answer(broker *b, uint32_t at)
{
    taken *t = &b->taken[at];
    const cb_engine *e = b->run->engine;
    cb_cut *cut = &b->run->cuts[at];
    cb_iov none = {NULL, 0, 0};
    const cb_iov *answer =
        t->answer_nbytes ? cb_cut_of(cut, t->slot, t->answer_nbytes) : &none;
    enter(b, CB_ANSWERING);
    int rc = e->ops->answer(e->self, t->ticket, answer);
    t->state = IDLE;
    b->waiting--;
    if (t->r.api == BROKER_PRODUCE)
        conn_of(b, t->peer)->unsent--;
    free(t->heap);
    t->heap = NULL;
    return rc < 0 ? engine_says(b, rc, t->peer) : 0;
}

static int empty_channel_buffer(broker *b)
{
    int rc = 0;
    while (rc == 0 && b->outbox.head != NOBODY)
        rc = send_answer(b, take_first(b, &b->outbox));
    b->boxed = 0;
    return rc;
}

/* Out at once, or into the channel buffer, which leaves when it is full or the turn is over. */
static int release(broker *b, uint32_t at)
{
    if (b->run->design & CB_EAGER_FLUSH)
        return send_answer(b, at);
    append_to(b, &b->outbox, at);
    b->boxed += b->taken[at].answer_nbytes;
    return b->boxed >= b->run->channel_buffer ? empty_channel_buffer(b) : 0;
}

static void forget_answer(broker *b, connection *n, uint32_t at)
{
    uint32_t *link = &n->answers, before = NOBODY;
    while (*link != at) {
        before = *link;
        link = &b->taken[*link].later;
    }
    *link = b->taken[at].later;
    if (n->last == at)
        n->last = before;
}

/* The answers of a producer whose turn has come: in order, or with CB_REORDER_BROKER off as they are
 * ready. Only PRODUCE stands in this line. */
static int release_ready(broker *b, connection *n, uint32_t at)
{
    int rc = 0;
    if ((b->run->design & CB_OVERLAPPED) && !(b->run->design & CB_REORDER_BROKER)) {
        forget_answer(b, n, at);
        return release(b, at);
    }
    while (rc == 0 && n->answers != NOBODY && b->taken[n->answers].state == READY) {
        uint32_t first = n->answers;
        n->answers = b->taken[first].later;
        if (n->answers == NOBODY)
            n->last = NOBODY;
        rc = release(b, first);
    }
    return rc;
}

/* The answer of a request is whole: nbody bytes stand behind its header already. */
static int ready(broker *b, uint32_t at, int error, int16_t flags, int64_t offset,
                 int64_t high_watermark, uint32_t nbody)
{
    taken *t = &b->taken[at];
    const broker_answer a = {t->r.correlation, t->r.partition, (int16_t)error, flags, offset,
                             high_watermark};
    bool silent = t->r.api == BROKER_PRODUCE && t->r.acks == CB_ACKS_NONE;
    t->answer_nbytes = silent ? 0 : broker_put_answer(t->slot, &a, nbody);
    t->state = READY;
    if (error)
        b->run->refused++;
    if (t->r.api != BROKER_PRODUCE)
        return release(b, at);
    return release_ready(b, conn_of(b, t->peer), at);
}

static int refuse(broker *b, uint32_t at, int error)
{
    return ready(b, at, error, 0, -1, -1, 0);
}

/* With the reason in words, as far as every reply slot has room. */
static int refuse_because(broker *b, uint32_t at, int error, const char *why)
{
    size_t n = strlen(why);
    n = n < BROKER_REASON ? n : BROKER_REASON;
    memcpy(b->taken[at].slot + BROKER_ANSWER, why, n);
    return ready(b, at, error, 0, -1, -1, (uint32_t)n);
}
