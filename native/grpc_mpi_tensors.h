/*
 * Tensors between application memory and messages. Part of grpc_mpi_engine.h.
 *
 * path=default keeps TensorFlow's five copies of a tensor: into tensor_content and into MPI's buffer
 * at its owner; out of the received bytes, into the message that the callback takes by value, and
 * into the tensor at the rank that asked. path=optimal has none for a tensor of one buffer.
 */
static int mpi_failed(engine *e, const char *name, int code)
{
    char text[512] = "unknown error";   /* MPI_MAX_ERROR_STRING: 256 to 512 */
    int length = 0;
    e->l.mpi.Error_string(code, text, &length);
    text[sizeof text - 1] = '\0';
    for (char *p = text; *p; p++)
        if (*p == '\n')
            *p = ' ';
    snprintf(error_of(e), sizeof e->error, "MPI_%s: %.480s", name, text);
    return -EIO;
}

#define TRY(e, name, ...) \
    do { \
        int code_ = (e)->l.mpi.name(__VA_ARGS__); \
        if (__builtin_expect(code_ != 0, 0)) \
            return mpi_failed((e), #name, code_); \
    } while (0)

/* As raw bytes behind a header? */
static bool goes_raw(const engine *e, uint64_t nbytes)
{
    return e->optimal && nbytes >= OPTIMAL_FROM;
}

static char *allocate(engine *e, uint64_t nbytes, int *rc)
{
    char *memory = malloc(nbytes + 1);
    if (!memory)
        *rc = refuse(e, -ENOMEM, "out of memory for a tensor");
    return memory;
}

/* tensor_content; on the optimal path only what has to be joined. Called without the lock. */
static int make_offer(engine *e, offer *o, const cb_iov *m)
{
    int rc = 0;
    *o = (offer){.put = true, .nbytes = m->nbytes};
    if (goes_raw(e, m->nbytes) && m->n == 1) {
        o->from = m->iov->iov_base;
        return 0;
    }
    if ((o->content = allocate(e, m->nbytes, &rc)))
        gather(e, o->content, m);
    o->from = o->content;
    return rc;
}

/* Memory of `nbytes` that has been written, as std::vector's. */
static char *allocate_zeroed(engine *e, uint64_t nbytes, int *rc)
{
    char *memory = allocate(e, nbytes, rc);
    if (memory)
        memset(memory, 0, nbytes);
    return memory;
}

/* The content of a response, parsed, handed on by value, made a tensor. */
static int take_content(engine *e, const cb_iov *target, span content)
{
    int rc = 0;
    char *parsed = allocate(e, content.nbytes, &rc);
    char *passed = parsed ? allocate(e, content.nbytes, &rc) : NULL;
    if (passed) {
        copy(e, parsed, content.at, content.nbytes);
        copy(e, passed, parsed, content.nbytes);
        scatter(e, target, passed, content.nbytes);
    }
    free(parsed);
    free(passed);
    return rc;
}

/* The raw bytes that follow a header: blocking, as TensorFlow's. */
static int take_raw(engine *e, const cb_iov *target, int32_t rank, uint64_t nbytes)
{
    _Alignas(16) char st[CB_GRPC_MPI_STATUS_MAX];
    int rc = 0, got = 0;
    bool joined = target->n != 1;
    char *to = joined ? allocate(e, nbytes, &rc) : target->iov->iov_base;
    if (rc < 0)
        return rc;
    int code = e->l.mpi.Recv(to, (int)nbytes, e->l.byte, rank, TAG_CONTENT, e->l.comm, st);
    if (code == 0)
        code = e->l.mpi.Get_count(st, e->l.byte, &got);
    if (code != 0)
        rc = mpi_failed(e, "Recv", code);
    else if ((uint64_t)got != nbytes)
        rc = refuse(e, -EPROTO, "a tensor's raw bytes are not as many as its header says");
    if (joined && rc == 0)
        scatter(e, target, to, nbytes);
    if (joined)
        free(to);
    return rc;
}

/* ------------------------------------------------------------------ for the thread that calls MPI */

static int check_size(engine *e, uint64_t nbytes)
{
    if (nbytes <= MOST_NBYTES)
        return 0;
    snprintf(e->error, sizeof e->error, "a message of %llu bytes: the grpc+mpi channel sends at "
             "most %llu, because MPI counts in int", (unsigned long long)nbytes,
             (unsigned long long)MOST_NBYTES);
    return -EMSGSIZE;
}

static void tell_thread(engine *e)
{
    if (e->napping)
        pthread_cond_signal(&e->work);
}

/* A tensor of the peer's is wanted. With the lock. */
static void ask_for(engine *e, lane *a)
{
    push(&e->calls, a);
    tell_thread(e);
}

/* A tensor was put and the peer asks for it. With the lock. */
static void respond(engine *e, lane *a)
{
    push(&e->responses, a);
    tell_thread(e);
}
