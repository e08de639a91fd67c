/*
 * The progress thread: the only one that calls MPI. A turn is TensorFlow's: one request that came, one
 * response that came, all sends on their way, one request to send, one response to send.
 * Part of grpc_mpi_engine.h.
 */
/* How much happened, or -errno. */
static int turn(engine *e)
{
    int happened = 0, rc;
    if ((rc = look_for(e, TAG_REQUEST, take_request)) < 0)
        return rc;
    happened += rc;
    if ((rc = look_for(e, TAG_RESPONSE, take_response)) < 0)
        return rc;
    happened += rc;
    if ((rc = look_at_sends(e)) < 0)
        return rc;
    happened += rc;
    if ((rc = send_one(e, &e->calls, send_request)) < 0)
        return rc;
    happened += rc;
    rc = send_one(e, &e->responses, send_response);
    return rc < 0 ? rc : happened + rc;
}

/* Nothing was there in a number of turns. TensorFlow's thread goes on at once; giving way costs
 * nothing where a core is free, and where none is the others would wait for a time slice. */
static void idle(engine *e)
{
    if (!e->sleeps) {
        sched_yield();
        return;
    }
    lock(e);
    if (!e->calls.count && !e->responses.count) {
        e->napping = true;
        wait_until(e, &e->work, monotonic_ns() + NAP_NS);
        e->napping = false;
    }
    unlock(e);
}

/* The thread of the loop was woken and may share our core. */
static void give_way(engine *e)
{
    e->handed_over = false;
    sched_yield();
}

/* Requests that were sent ahead for messages that never come: their memory is MPI's until they are
 * sent. 1: all are; 0: not yet. */
static int end_calls(engine *e)
{
    _Alignas(16) char st[CB_GRPC_MPI_STATUS_MAX];
    for (uint32_t i = 0; i < 2 * e->c->npeers * e->lanes; i++) {
        call *in = &e->all[i].in;
        int done = 0;
        if (!in->buffer)
            continue;
        TRY(e, Test, &in->request, &done, st);
        if (!done)
            return 0;
        TRY(e, Free_mem, in->buffer);
        in->buffer = NULL;
    }
    return 1;
}

/* Each end tells the other that its requests are all sent, and goes on until it is told so too: those
 * that were sent ahead would else stay inside MPI. 1: done. */
static int take_leave(engine *e)
{
    _Alignas(16) char st[CB_GRPC_MPI_STATUS_MAX];
    int all = 1;
    for (uint32_t i = 0; i < e->c->npeers; i++) {
        peer *p = &e->peers[i];
        int sent = 0;
        if (!p->leaving)
            TRY(e, Isend, NULL, 0, e->l.byte, p->rank, TAG_REQUEST, e->l.comm, &p->leave);
        p->leaving = true;
        TRY(e, Test, &p->leave, &sent, st);
        all = all && sent && p->took_leave;
    }
    return all;
}

/* 1: nothing is on its way any more, in either direction. */
static int over(engine *e)
{
    int rc = any(&e->responses) || any(&e->calls) ? 0 : take_leave(e);
    return rc != 1 || e->nactive ? (rc < 0 ? rc : 0) : end_calls(e);
}

static int run_case(engine *e)
{
    uint32_t quiet = 0;
    int rc = 0;
    while (__atomic_load_n(&e->running, __ATOMIC_ACQUIRE)) {
        if ((rc = turn(e)) < 0)
            return rc;
        quiet = rc ? 0 : quiet + 1;
        if (__atomic_load_n(&e->closing, __ATOMIC_ACQUIRE) && (rc = over(e)) != 0)
            return rc < 0 ? rc : 0;
        if (quiet >= IDLE_TURNS)
            idle(e);
        else if (e->handed_over)
            give_way(e);
    }
    return rc < 0 ? rc : 0;
}

/* Between cases the thread sleeps: it would disturb what else is measured. */
static void *progress_thread(void *self)
{
    engine *e = self;
    lock(e);
    while (!e->quit) {
        if (!e->running || e->parked) {
            pthread_cond_wait(&e->work, &e->lock);
            continue;
        }
        unlock(e);
        int rc = run_case(e);
        lock(e);
        e->failed = rc;
        e->parked = true;
        pthread_cond_broadcast(&e->news);
    }
    e->parked = e->gone = true;
    pthread_cond_broadcast(&e->news);
    unlock(e);
    return NULL;
}
