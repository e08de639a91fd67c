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

/*
 * Kafka's classes write an answer to the channel in several calls. Without CB_EAGER_FLUSH each copies its
 * piece into the channel buffer, which leaves when it is full or the turn is over; a part of a message
 * is of no use to whoever gets it, so that an answer leaves with the buffer that has its last piece. With
 * it a piece lies in memory that the engine sends from, and a tracker, which has the length from the
 * first four bytes, lets the answer go when it is whole.
 *
 * The channel buffer has its bytes in the slots of the requests, one behind the other only within an
 * answer: an engine may look at an answer until its slot is used again, which is in no order.
 */
static int write_piece(broker *b, uint32_t at, const uint8_t *piece, uint64_t nbytes)
{
    taken *t = &b->taken[at];
    uint8_t *to = t->slot + t->written;
    if (piece != to) {
        memcpy(to, piece, nbytes);
        b->run->copied += nbytes;
    }
    t->written += nbytes;
    bool whole = t->written == 4 + (uint64_t)get32(t->slot);
    if (b->run->design & CB_EAGER_FLUSH)
        return whole ? send_answer(b, at) : 0;
    if (whole)
        append_to(b, &b->outbox, at);
    uint64_t boxed = b->boxed += nbytes;
    if (boxed < b->run->channel_buffer)
        return 0;
    int rc = empty_channel_buffer(b);
    b->boxed = boxed % b->run->channel_buffer;
    return rc;
}

/* Its length, its header and its result. What a FETCH has read lies there already: Kafka's broker does
 * not copy it either, the kernel moves it from file to socket (transferTo). */
static int release(broker *b, uint32_t at)
{
    taken *t = &b->taken[at];
    bool eager = b->run->design & CB_EAGER_FLUSH;
    const uint8_t *head = eager ? t->slot : t->head;
    uint64_t nbody = t->answer_nbytes - BROKER_ANSWER;
    int rc;
    if (t->answer_nbytes == 0 && eager)
        return send_answer(b, at);
    if (t->answer_nbytes == 0) {
        append_to(b, &b->outbox, at);
        return 0;
    }
    if ((rc = write_piece(b, at, head, 4)) < 0 || (rc = write_piece(b, at, head + 4, 4)) < 0 ||
        (rc = write_piece(b, at, head + 8, BROKER_ANSWER - 8)) < 0)
        return rc;
    return nbody ? write_piece(b, at, t->slot + BROKER_ANSWER, nbody) : 0;
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

/* Its handler is through with a request: nbody bytes stand behind the header already. */
static int deliver(broker *b, uint32_t at)
{
    taken *t = &b->taken[at];
    bool silent = t->r.api == BROKER_PRODUCE && t->r.acks == CB_ACKS_NONE;
    uint8_t *head = b->run->design & CB_EAGER_FLUSH ? t->slot : t->head;
    t->answer_nbytes = silent ? 0 : broker_put_answer(head, &t->answer, t->nbody);
    t->state = READY;
    b->run->refused += t->answer.error != 0;
    if (t->r.api != BROKER_PRODUCE)
        return release(b, at);
    return release_ready(b, conn_of(b, t->peer), at);
}
