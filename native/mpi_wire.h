/*
 * How a message is given to MPI: one buffer as bytes, several as a derived datatype (made once and
 * found again by what it describes) or packed into a staging buffer. Part of mpi_engine.h.
 */
typedef MPI_HANDLE handle;
typedef char *status;           /* status_nbytes bytes */

#define MPI_CALL_MEMBER(name, arguments) int (*name) arguments;

typedef struct layout {         /* a derived datatype and a copy of what it was made of */
    struct iovec *iov;
    uint32_t n;
    handle type;
} layout;

typedef struct library {
    struct { CB_MPI_CALLS(MPI_CALL_MEMBER, handle, status) } mpi;
    handle comm, byte, null;
    size_t status_nbytes;
    int error_at, count_at;
    int error_in_status, error_pending, undefined;
    bool pack;
    layout *layouts;            /* open addressing; nlayouts is a power of two */
    uint32_t nlayouts, used, generation;
    uint64_t copied;            /* payload bytes that were packed or unpacked */
    char error[512];
} library;

typedef struct wire {
    void *base;
    int count;
    handle type;
} wire;

typedef struct staging {        /* grows to what it needs in the untimed verified pass */
    char *base;
    uint64_t capacity;
} staging;

static int refuse(library *l, int code, const char *why)
{
    snprintf(l->error, sizeof l->error, "%s", why);
    return code;
}

static int mpi_failed(library *l, const char *call, int code)
{
    char text[512] = "unknown error";   /* MPI_MAX_ERROR_STRING: 256 to 512 */
    int length = 0;
    l->mpi.Error_string(code, text, &length);
    text[sizeof text - 1] = '\0';
    for (char *p = text; *p; p++)
        if (*p == '\n')
            *p = ' ';
    snprintf(l->error, sizeof l->error, "MPI_%s: %.480s", call, text);
    return -EIO;
}

#define TRY(l, name, ...) \
    do { \
        int code_ = (l)->mpi.name(__VA_ARGS__); \
        if (__builtin_expect(code_ != 0, 0)) \
            return mpi_failed((l), #name, code_); \
    } while (0)

/* A call that fills several statuses says MPI_ERR_IN_STATUS; the reason stands in one of them. */
static int statuses_failed(library *l, const char *call, int code, status statuses, int n)
{
    int kind = 0, one, one_kind;
    l->mpi.Error_class(code, &kind);
    if (kind != l->error_in_status || l->error_at < 0)
        n = 0;
    for (int i = 0; i < n; i++) {
        memcpy(&one, statuses + (size_t)i * l->status_nbytes + l->error_at, sizeof one);
        if (one == 0 || l->mpi.Error_class(one, &one_kind) != 0 || one_kind == l->error_pending)
            continue;
        return mpi_failed(l, call, one);
    }
    return mpi_failed(l, call, code);
}

/* No message is longer than INT_MAX, so the low half of a longer count field will do. */
static inline int received(library *l, status s, uint64_t *nbytes)
{
    int count;
    if (__builtin_expect(l->count_at >= 0, 1)) {
        memcpy(&count, s + l->count_at, sizeof count);
        *nbytes = (uint64_t)count;
        return 0;
    }
    TRY(l, Get_count, s, l->byte, &count);
    if (count == l->undefined)
        return refuse(l, -EOVERFLOW, "MPI cannot say how many bytes a message had");
    *nbytes = (uint64_t)count;
    return 0;
}

/* ------------------------------------------------------------------ derived datatypes */

static bool describes(const layout *a, const cb_iov *m)
{
    return a->n == m->n && memcmp(a->iov, m->iov, m->n * sizeof *m->iov) == 0;
}

static uint32_t hash_of(const cb_iov *m)
{
    uint64_t h = (uintptr_t)m->iov[0].iov_base ^ (uintptr_t)m->iov[m->n - 1].iov_base << 7;
    h = (h ^ m->nbytes << 20 ^ m->n) * UINT64_C(0x9E3779B97F4A7C15);
    return (uint32_t)(h >> 32);
}

static int make_type(library *l, const cb_iov *m, int *lengths, ptrdiff_t *at, handle *type)
{
    uintptr_t base = (uintptr_t)m->iov[0].iov_base;
    for (uint32_t i = 0; i < m->n; i++) {
        lengths[i] = (int)m->iov[i].iov_len;
        at[i] = lengths[i] ? (ptrdiff_t)((uintptr_t)m->iov[i].iov_base - base) : 0;
    }
    TRY(l, Type_create_hindexed, (int)m->n, lengths, at, l->byte, type);
    TRY(l, Type_commit, type);
    return 0;
}

static int make_layout(library *l, const cb_iov *m, layout *made)
{
    int *lengths = malloc(m->n * sizeof *lengths);
    ptrdiff_t *at = malloc(m->n * sizeof *at);
    int rc = -ENOMEM;
    *made = (layout){malloc(m->n * sizeof *m->iov), m->n, l->null};
    if (lengths && at && made->iov) {
        memcpy(made->iov, m->iov, m->n * sizeof *m->iov);
        rc = make_type(l, m, lengths, at, &made->type);
    } else {
        refuse(l, rc, "out of memory");
    }
    if (rc < 0)
        free(made->iov);
    free(lengths);
    free(at);
    return rc;
}

/* A full table forgets what it had: at worst the datatypes are made again. */
static int forget_layouts(library *l)
{
    for (uint32_t i = 0; i < l->nlayouts; i++) {
        if (!l->layouts[i].iov)
            continue;
        free(l->layouts[i].iov);
        l->layouts[i].iov = NULL;
        TRY(l, Type_free, &l->layouts[i].type);
    }
    l->used = 0;
    l->generation++;            /* a handle may come back for another layout */
    return 0;
}

static int type_of(library *l, const cb_iov *m, handle *type)
{
    if (l->used * 2 > l->nlayouts && forget_layouts(l) < 0)
        return -EIO;
    uint32_t i = hash_of(m) & (l->nlayouts - 1);
    for (; l->layouts[i].iov; i = (i + 1) & (l->nlayouts - 1))
        if (describes(&l->layouts[i], m)) {
            *type = l->layouts[i].type;
            return 0;
        }
    layout made;
    int rc = make_layout(l, m, &made);
    if (rc < 0)
        return rc;
    l->layouts[i] = made;
    l->used++;
    *type = made.type;
    return 0;
}

/* ------------------------------------------------------------------ wires */

static bool packed(const library *l, const cb_iov *m)
{
    return l->pack && m->n > 1;
}

static int stage(library *l, staging *s, uint64_t nbytes, wire *w)
{
    if (nbytes > s->capacity) {
        free(s->base);
        s->base = malloc(nbytes);
        s->capacity = s->base ? nbytes : 0;
        if (!s->base)
            return refuse(l, -ENOMEM, "out of memory for packing");
    }
    *w = (wire){s->base, (int)nbytes, l->byte};
    return 0;
}

/* Where a message lands. */
static inline int landing(library *l, staging *s, const cb_iov *m, wire *w)
{
    if (__builtin_expect(m->n == 1, 1)) {
        *w = (wire){m->iov->iov_base, (int)m->iov->iov_len, l->byte};
        return 0;
    }
    *w = (wire){NULL, 0, l->byte};
    if (m->n == 0)
        return 0;
    if (l->pack)
        return stage(l, s, m->nbytes, w);
    w->base = m->iov->iov_base;
    w->count = 1;
    return type_of(l, m, &w->type);
}

/* Where a message is sent from. */
static inline int outgoing(library *l, staging *s, const cb_iov *m, wire *w)
{
    int rc = landing(l, s, m, w);
    if (rc < 0 || !packed(l, m))
        return rc;
    char *to = w->base;
    l->copied += m->nbytes;
    for (uint32_t i = 0; i < m->n; i++) {
        if (m->iov[i].iov_len)
            memcpy(to, m->iov[i].iov_base, m->iov[i].iov_len);
        to += m->iov[i].iov_len;
    }
    return 0;
}

/* After a message of nbytes arrived through landing(). */
static inline void landed(library *l, const staging *s, const cb_iov *m, uint64_t nbytes)
{
    const char *from = s->base;
    if (__builtin_expect(!packed(l, m), 1))
        return;
    l->copied += nbytes;
    for (uint32_t i = 0; i < m->n && nbytes > 0; i++) {
        size_t part = m->iov[i].iov_len < nbytes ? m->iov[i].iov_len : nbytes;
        if (part)
            memcpy(m->iov[i].iov_base, from, part);
        from += part;
        nbytes -= part;
    }
}
