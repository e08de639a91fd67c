/*
 * The completion thread, TensorFlow's: it sleeps until a completion event comes and then takes all
 * completions that there are, in batches. Part of engine.c.
 */

/* Some of them; -errno or how many. With the lock, but not while it looks. */
static int take_completions(engine *e)
{
    struct ibv_wc wc[BATCH];
    e->inside = true;
    unlock(e);
    int n = ibv_poll_cq(e->cq, BATCH, wc);
    lock(e);
    for (int i = 0; i < n; i++)
        take_completion(e, &wc[i]);
    if (n < 0)
        fail(e, -EIO, "the completion queue of %s failed", e->name);
    e->inside = false;
    if (!e->running || e->closing)
        pthread_cond_broadcast(&e->news);
    return n;
}

static void take_events(engine *e)
{
    struct ibv_cq *cq;
    void *context;
    unsigned n = 0;
    while (ibv_get_cq_event(e->events, &cq, &context) == 0)
        n++;
    if (n > 0)
        ibv_ack_cq_events(e->cq, n);
    ibv_req_notify_cq(e->cq, 0);
}

/* With the lock, but not while it waits. The queue is looked at again after it was armed. */
static void wait_for_event(engine *e)
{
    struct epoll_event event;
    e->handed_over = false;
    unlock(e);
    if (e->o.spin) {
        sched_yield();
    } else {
        epoll_wait(e->either, &event, 1, -1);
        take_events(e);
    }
    lock(e);
}

/* Between cases it leaves in the queue what comes. */
static void *completion_thread(void *self)
{
    engine *e = self;
    uint32_t quiet = 0;
    lock(e);
    while (!e->quit) {
        if (!e->running) {
            pthread_cond_wait(&e->work, &e->lock);
            continue;
        }
        quiet = take_completions(e) > 0 ? 0 : quiet + 1;
        if (quiet > 0 && (!e->o.spin || quiet >= IDLE_TURNS || e->handed_over))
            wait_for_event(e);
    }
    unlock(e);
    return NULL;
}

static bool start_thread(engine *e)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->news, &monotonic);
    pthread_cond_init(&e->work, &monotonic);
    pthread_condattr_destroy(&monotonic);
    e->started = pthread_create(&e->thread, NULL, completion_thread, e) == 0;
    return e->started;
}

static void end_thread(engine *e)
{
    if (!e->started)
        return;
    lock(e);
    e->quit = true;
    e->running = false;
    pthread_cond_broadcast(&e->work);
    unlock(e);
    eventfd_write(e->wake, 1);
    pthread_join(e->thread, NULL);
    e->started = false;
}
