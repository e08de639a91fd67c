/* The two threads of an engine: errors, lists, sleep. See tensor_ring.h. */
/* Either thread writes its own; the loop's reads the other when it sees `failed`. */
static char *error_of(engine *e)
{
    return pthread_equal(pthread_self(), e->thread) ? e->thread_error : e->error;
}

static int refuse(engine *e, int code, const char *why)
{
    snprintf(error_of(e), sizeof e->error, "%s", why);
    return code;
}

static bool stopped(const engine *e)
{
    return __atomic_load_n(e->c->stop, __ATOMIC_ACQUIRE) != 0;
}

/* The count is read without the lock, to see whether it is worth taking. */
static void push(ring *r, lane *value)
{
    uint32_t at = r->head + r->count;
    r->at[at < r->size ? at : at - r->size] = value;
    __atomic_store_n(&r->count, r->count + 1, __ATOMIC_RELEASE);
}

static lane *pop(ring *r)
{
    lane *value = r->at[r->head];
    if (++r->head == r->size)
        r->head = 0;
    __atomic_store_n(&r->count, r->count - 1, __ATOMIC_RELEASE);
    return value;
}

static inline bool any(const ring *r)      /* inline: some engines do not ask */
{
    return __atomic_load_n(&r->count, __ATOMIC_ACQUIRE) != 0;
}

static void lock(engine *e)
{
    pthread_mutex_lock(&e->lock);
}

static void unlock(engine *e)
{
    pthread_mutex_unlock(&e->lock);
}

static void count(uint64_t *counter, uint64_t more)
{
    __atomic_fetch_add(counter, more, __ATOMIC_RELAXED);
}

static void tell_loop(engine *e)
{
    if (!e->waiting)
        return;
    e->handed_over = true;
    pthread_cond_signal(&e->news);
}

static int64_t monotonic_ns(void)       /* for deadlines */
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void wait_until(engine *e, pthread_cond_t *what, int64_t until)
{
    struct timespec t = {until / 1000000000, until % 1000000000};
    pthread_cond_timedwait(what, &e->lock, &t);
}

/* ------------------------------------------------------------------ counted copies */

static void copy(engine *e, char *to, const char *from, uint64_t nbytes)
{
    if (nbytes)
        memcpy(to, from, nbytes);
    count(&e->counters.copied_nbytes, nbytes);
}

static void gather(engine *e, char *to, const cb_iov *m)
{
    for (uint32_t i = 0; i < m->n; i++) {
        copy(e, to, m->iov[i].iov_base, m->iov[i].iov_len);
        to += m->iov[i].iov_len;
    }
}

static void scatter(engine *e, const cb_iov *m, const char *from, uint64_t nbytes)
{
    for (uint32_t i = 0; i < m->n && nbytes > 0; i++) {
        uint64_t part = m->iov[i].iov_len < nbytes ? m->iov[i].iov_len : nbytes;
        copy(e, m->iov[i].iov_base, from, part);
        from += part;
        nbytes -= part;
    }
}
