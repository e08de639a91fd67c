/* The handlers at work, and how requests come to them and back. Part of broker.c. */

/* Whether this rank leads a partition that is this handler's. */
static bool is_own(const handler *h, uint32_t at)
{
    const partition *p = &h->b->parts[at];
    return p->log && p->leads && handler_of(h->b, at) == h;
}

/* The FETCHes whose wait is over, and when the next one's is. */
static int end_waits(handler *h)
{
    int rc = 0;
    if (h->fetches_waiting == 0 || h->now_ns < h->next_due_ns)
        return 0;
    h->next_due_ns = h->now_ns + h->b->run->fetch_wait_ns;
    for (uint32_t i = 0; rc == 0 && i < h->b->run->who.partitions; i++) {
        partition *p = &h->b->parts[i];
        if (!is_own(h, i) || p->fetches.head == NOBODY)
            continue;
        if (h->b->taken[p->fetches.head].until_ns <= h->now_ns)
            rc = wake_fetches(h, p);
        if (p->fetches.head != NOBODY && h->b->taken[p->fetches.head].until_ns < h->next_due_ns)
            h->next_due_ns = h->b->taken[p->fetches.head].until_ns;
    }
    return rc;
}

/* The last producer has ended: what waits may be all that there is. */
static int wake_all(handler *h)
{
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < h->b->run->who.partitions; i++)
        if (is_own(h, i))
            rc = wake_fetches(h, &h->b->parts[i]);
    return rc;
}

/* A replica that does not keep up, by name. */
static int look_at_replicas(handler *h, uint32_t at)
{
    partition *p = &h->b->parts[at];
    if (p->acks.head == NOBODY || h->b->taken[p->acks.head].until_ns > h->now_ns)
        return 0;
    int64_t wanted = h->b->taken[p->acks.head].end;
    for (uint32_t r = 1; r < h->b->run->who.replication; r++)
        if (p->confirmed[r] < wanted) {
            int32_t rank = rank_of_replica(&h->b->run->who, at, r);
            return complain_of(h, -ETIMEDOUT, rank, "acks=all: follower rank %d has not confirmed "
                            "offset %lld of partition %u within %g s", rank, (long long)wanted - 1,
                            at, (double)h->b->run->timeout_ns / 1e9);
        }
    return 0;
}

static int look_at_all_replicas(handler *h)
{
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < h->b->run->who.partitions; i++)
        if (is_own(h, i))
            rc = look_at_replicas(h, i);
    return rc;
}

/* ------------------------------------------------------------------ the thread */

/* Waits for requests, a wake-up, or the end of a wait. False: it is over. */
static bool next_requests(handler *h, list *some, bool *woken)
{
    int64_t until = h->now_ns + LOOK_NS;
    if (h->fetches_waiting && h->next_due_ns < until)
        until = h->next_due_ns;
    const struct timespec late = {until / 1000000000, until % 1000000000};
    pthread_mutex_lock(&h->lock);
    h->sleeping = true;
    while (h->arrived.head == NOBODY && !h->woken && !h->over &&
           pthread_cond_timedwait(&h->news, &h->lock, &late) != ETIMEDOUT)
        ;
    h->sleeping = false;
    *some = h->arrived;
    *woken = h->woken;
    h->arrived = (list){NOBODY, NOBODY};
    h->woken = false;
    bool goes_on = !h->over;
    pthread_mutex_unlock(&h->lock);
    return goes_on;
}

static void *run_handler(void *argument)
{
    handler *h = argument;
    list some;
    bool woken;
    int rc = 0;
    int64_t look_ns = h->now_ns = cb_now_ns();
    while (rc == 0 && next_requests(h, &some, &woken)) {
        h->now_ns = cb_now_ns();
        while (rc == 0 && some.head != NOBODY)
            rc = handle(h, take_first(h->b, &some));
        if (rc == 0 && woken)
            rc = wake_all(h);
        if (rc == 0)
            rc = end_waits(h);
        if (rc == 0 && h->now_ns - look_ns > LOOK_NS) {
            rc = look_at_all_replicas(h);
            look_ns = h->now_ns;
        }
    }
    __atomic_store_n(&h->rc, rc, __ATOMIC_RELEASE);
    return NULL;
}

/* ------------------------------------------------------------------ from the thread that serves */

static int as_own(broker *b, const handler *h, int rc)
{
    return rc < 0 && h->message[0] ? complain(b, rc, h->peer, "%s", h->message) : rc;
}

static void hand_over(handler *h, uint32_t at)
{
    pthread_mutex_lock(&h->lock);
    append_to(h->b, &h->arrived, at);
    if (h->sleeping)
        pthread_cond_signal(&h->news);
    pthread_mutex_unlock(&h->lock);
}

static int answer_end(broker *b, uint32_t at, int error)
{
    taken *t = &b->taken[at];
    int64_t none = error ? -1 : 0;
    t->answer = (broker_answer){t->r.correlation, t->r.partition, (int16_t)error, 0, none, none};
    t->nbody = 0;
    return deliver(b, at);
}

static int wake(broker *b, handler *h)
{
    if (!h->is_thread)
        return as_own(b, h, wake_all(h));
    pthread_mutex_lock(&h->lock);
    h->woken = true;
    pthread_cond_signal(&h->news);
    pthread_mutex_unlock(&h->lock);
    return 0;
}

static int on_end(broker *b, uint32_t at)
{
    taken *t = &b->taken[at];
    connection *n = conn_of(b, t->peer);
    if (n->ended || t->peer < (int32_t)b->run->who.brokers)
        return answer_end(b, at, BROKER_INVALID_REQUEST);
    n->ended = true;
    b->clients_left--;
    if (is_producer(&b->run->who, t->peer))
        __atomic_sub_fetch(&b->producers_left, 1, __ATOMIC_RELEASE);
    int rc = answer_end(b, at, BROKER_OK);
    for (uint32_t i = 0; rc == 0 && producers_ended(b) && i < b->nhandlers; i++)
        rc = wake(b, &b->handlers[i]);
    return rc;
}

/* A request whose turn it is, to who handles it. */
static int dispatch(broker *b, uint32_t at)
{
    taken *t = &b->taken[at];
    if (!t->error && t->r.api == BROKER_END)
        return on_end(b, at);
    handler *h = handler_of(b, t->r.partition < 0 ? 0 : (uint32_t)t->r.partition);
    if (h->is_thread) {
        hand_over(h, at);
        return 0;
    }
    h->now_ns = b->now_ns;
    return as_own(b, h, handle(h, at));
}

/* What handlers are through with; returns how many, or < 0. */
static int take_finished(broker *b)
{
    int n = 0, rc = 0;
    for (uint32_t i = 0; i < b->nhandlers; i++) {
        handler *h = &b->handlers[i];
        if ((rc = __atomic_load_n(&h->rc, __ATOMIC_ACQUIRE)) < 0)
            return as_own(b, h, rc);
        if (__atomic_load_n(&h->nfinished, __ATOMIC_ACQUIRE) == 0)
            continue;
        pthread_mutex_lock(&h->lock);
        list some = h->finished;
        h->finished = (list){NOBODY, NOBODY};
        __atomic_store_n(&h->nfinished, 0, __ATOMIC_RELAXED);
        pthread_mutex_unlock(&h->lock);
        for (; rc == 0 && some.head != NOBODY; n++)
            rc = deliver(b, take_first(b, &some));
        if (rc < 0)
            return rc;
    }
    return n;
}

/* ------------------------------------------------------------------ beginning and end */

static bool start_thread(handler *h)
{
    pthread_condattr_t attributes;
    if (pthread_condattr_init(&attributes) != 0)
        return false;
    bool made = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) == 0 &&
                pthread_cond_init(&h->news, &attributes) == 0;
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&h->lock, NULL);
    h->is_thread = true;
    if (made && pthread_create(&h->thread, NULL, run_handler, h) == 0)
        return true;
    h->is_thread = false;
    return false;
}

static int start_handlers(broker *b)
{
    bool threads = b->run->design & CB_POLLING;
    for (uint32_t i = 0; threads && i < b->nhandlers; i++)
        if (!start_thread(&b->handlers[i]))
            return complain(b, -EAGAIN, -1, "a thread for handler %u cannot be started", i);
    return 0;
}

/* Ends the threads and sums up what all have counted. */
static void stop_handlers(broker *b)
{
    cb_serve_run *run = b->run;
    for (uint32_t i = 0; b->handlers && i < b->nhandlers; i++) {
        handler *h = &b->handlers[i];
        if (h->is_thread) {
            pthread_mutex_lock(&h->lock);
            h->over = true;
            pthread_cond_signal(&h->news);
            pthread_mutex_unlock(&h->lock);
            pthread_join(h->thread, NULL);
            pthread_cond_destroy(&h->news);
            pthread_mutex_destroy(&h->lock);
        }
        run->produced += h->produced;
        run->fetched += h->fetched;
        run->records += h->records;
        run->deferred += h->deferred;
        run->copied += h->copied;
    }
}
