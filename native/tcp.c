/*
 * Plain stream sockets: tcp, uds and ipoib.
 *
 * Python (commbench/channels/sockets.py) connects and owns the sockets: one connection for each
 * ordered pair of ranks, so that on each of them requests go one way and replies the other. They
 * block, with timeouts of one tick, so that a wait for one peer is one system call and still looks
 * at the stop flag; several connections are waited for with epoll, or looked at in turn when
 * spinning. Writing never waits while a peer may be waiting for us to read.
 */
#define _GNU_SOURCE
#include "engines.h"
#include "tcp_wire.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define TICK_NS INT64_C(100000000)  /* as SO_RCVTIMEO and SO_SNDTIMEO of the sockets */
#define PATIENCE_NS INT64_C(60000000000) /* an answer that nobody reads */
#define GATHER_BYTES (256 * 1024)   /* queued messages joined in one sendmsg() */
#define EVENTS_MAX 64

typedef struct ring {           /* of indices; never overfull */
    uint32_t *at, head, count, size;
} ring;

typedef struct flight {         /* a message of ours, from post() to poll() */
    wire_header le;
    uint64_t ticket, reply_nbytes;
    const cb_iov *request, *reply;
    bool due;                   /* its reply has not come */
} flight;

enum arrival_state { FREE, ARRIVED, OPEN };

typedef struct arrival {        /* an incoming slot; its index is the ticket */
    cb_incoming in;
    struct iovec *cut;          /* for a message shorter than the slot */
    uint32_t slot;              /* the asker's */
    enum arrival_state state;
} arrival;

typedef struct conn {
    wire_in in;
    struct tcp *t;
    int fd;
    int32_t peer;
    bool asks;                  /* requests go out here and replies come in, or the reverse */
    uint32_t base;              /* its first flight or arrival */
    uint32_t now;               /* the one that is being received */
    ring free;                  /* flights or arrivals not in use */
    ring expect;                /* flights whose replies are due, oldest first */
    ring queue;                 /* flights that are not in the kernel yet */
    uint64_t sent;              /* bytes of the queue's head that are */
    uint32_t owed;              /* replies due to requests that have left */
    bool answering;             /* an answer waits for room */
    uint32_t armed;             /* what epoll watches */
} conn;

typedef struct tcp {
    cb_engine engine;
    bool spin;
    uint32_t size;              /* ranks */
    conn *conns;                /* asking ones by rank, then serving ones by rank */
    int epoll;                  /* not of a lone connection: its callback for each packet is 2 to
                                   5 % of a spinning round trip */
    bool lone;                  /* this case has one connection */
    const cb_case *c;           /* NULL between cases */
    conn **active;
    uint32_t nactive;
    flight *flights;
    arrival *arrivals;
    struct iovec *cuts;
    ring done, arrived;
    ring given;                 /* one-way messages handed out by the last accept() */
    struct iovec iov[WIRE_IOV_MAX];
    uint64_t copied;            /* payload bytes that were sent as a copy; see wire_in for others */
    char error[200];
} tcp;

/* ------------------------------------------------------------------ small things */

static int ring_init(ring *r, uint32_t size)
{
    free(r->at);
    *r = (ring){.at = malloc(((size_t)size + 1) * sizeof *r->at), .size = size};
    return r->at ? 0 : -ENOMEM;
}

static void ring_free(ring *r)
{
    free(r->at);
    *r = (ring){0};
}

static void push(ring *r, uint32_t value)
{
    uint32_t at = r->head + r->count++;
    r->at[at < r->size ? at : at - r->size] = value;
}

static uint32_t pop(ring *r)
{
    uint32_t value = r->at[r->head];
    r->head = r->head + 1 < r->size ? r->head + 1 : 0;
    r->count--;
    return value;
}

static uint32_t peek(const ring *r, uint32_t i)
{
    uint32_t at = r->head + i;
    return r->at[at < r->size ? at : at - r->size];
}

static WIRE_SLOW int refuse(tcp *t, int code, const char *why)
{
    snprintf(t->error, sizeof t->error, "%s", why);
    return code;
}

static WIRE_SLOW int lost(conn *c, int code)
{
    snprintf(c->t->error, sizeof c->t->error, "rank %d is gone (%s)", (int)c->peer,
             c->in.closed ? "it closed the connection" : strerror(-code));
    return -ECONNRESET;
}

static bool stopped(const tcp *t)
{
    return __atomic_load_n(t->c->stop, __ATOMIC_RELAXED) != 0;
}

static WIRE_SLOW int cancelled(tcp *t)
{
    return refuse(t, -ECANCELED, "the run was stopped");
}

static flight *flight_at(const conn *c, uint32_t slot)
{
    return &c->t->flights[c->base + slot];
}

static conn *conn_of(tcp *t, int32_t peer, bool asks)
{
    if (!t->c || peer < 0 || (uint32_t)peer >= t->size)
        return NULL;
    conn *c = &t->conns[(asks ? 0 : t->size) + (uint32_t)peer];
    return c->free.size ? c : NULL;
}

/* ------------------------------------------------------------------ sending requests */

/* As many queued messages as make a good sendmsg(). A blocking call must not go beyond a message
 * that wants a reply: its peer may wait for us to read that before it reads on. */
static uint32_t gather(conn *c, bool blocking, uint64_t *nbytes)
{
    uint32_t n = 0;
    uint64_t sent = c->sent;
    for (uint32_t i = 0; i < c->queue.count && n < WIRE_IOV_MAX && *nbytes < GATHER_BYTES; i++) {
        flight *f = flight_at(c, peek(&c->queue, i));
        n += wire_gather(&f->le, f->request, sent, c->t->iov + n, WIRE_IOV_MAX - n, nbytes);
        sent = 0;
        if (blocking && f->reply)
            break;
    }
    return n;
}

static void advance_queue(conn *c, uint64_t sent)
{
    c->sent += sent;
    while (c->queue.count > 0) {
        uint32_t slot = peek(&c->queue, 0);
        flight *f = flight_at(c, slot);
        uint64_t total = sizeof f->le + f->request->nbytes;
        if (c->sent < total)
            return;
        c->sent -= total;
        pop(&c->queue);
        if (f->reply)
            c->owed++;
        else
            push(&c->t->done, c->base + slot);
    }
}

static ssize_t send_some(conn *c, int flags, uint64_t *nbytes)
{
    flight *f = flight_at(c, peek(&c->queue, 0));
    if (c->queue.count == 1 && c->sent == 0 && wire_flat(f->request)) {
        *nbytes = sizeof f->le + f->request->nbytes;
        c->t->copied += f->request->nbytes;
        return wire_send_flat(c->fd, &f->le, f->request, flags);
    }
    struct msghdr m = {.msg_iov = c->t->iov};
    m.msg_iovlen = gather(c, !(flags & MSG_DONTWAIT), nbytes);
    return sendmsg(c->fd, &m, flags);
}

/* 0: the queue is empty; -EAGAIN: the kernel takes no more now, or a tick is over. */
static int flush(conn *c, int flags)
{
    while (c->queue.count > 0) {
        uint64_t nbytes = 0;
        ssize_t r = send_some(c, flags | MSG_NOSIGNAL, &nbytes);
        if (r < 0)
            return errno == EINTR || errno == EWOULDBLOCK ? -EAGAIN : lost(c, -errno);
        advance_queue(c, (uint64_t)r);
        if ((uint64_t)r < nbytes && !(flags & MSG_DONTWAIT))
            return -EAGAIN;
    }
    return 0;
}

static int start(conn *c, uint64_t ticket, const cb_iov *request, const cb_iov *reply)
{
    if (c->free.count == 0)
        return -EAGAIN;
    uint32_t slot = pop(&c->free);
    *flight_at(c, slot) = (flight){
        .le = wire_pack(request->nbytes, slot, reply ? WIRE_REQUEST : WIRE_ONE_WAY),
        .ticket = ticket, .request = request, .reply = reply, .due = reply != NULL};
    push(&c->queue, slot);
    if (reply && !c->in.careful)
        push(&c->expect, slot);
    return 0;
}

/* ------------------------------------------------------------------ receiving */

static WIRE_SLOW const cb_iov *refuse_message(conn *c, const wire_header *h, uint64_t room)
{
    snprintf(c->t->error, sizeof c->t->error, h->nbytes > room
             ? "rank %d sent a message of %llu bytes where %llu are the most"
             : "rank %d sent something that is no message of this case",
             (int)c->peer, (unsigned long long)h->nbytes, (unsigned long long)room);
    return NULL;
}

static const cb_iov *place_reply(void *ctx, const wire_header *h)
{
    conn *c = ctx;
    flight *f = h->kind == WIRE_REPLY && h->slot < c->t->c->window ? flight_at(c, h->slot) : NULL;
    if (!f || !f->due || h->nbytes > f->reply->nbytes)
        return refuse_message(c, h, f && f->due ? f->reply->nbytes : h->nbytes);
    c->now = h->slot;
    if (c->expect.count > 0 && peek(&c->expect, 0) == h->slot)
        pop(&c->expect);
    else
        c->in.careful = true;   /* the order is not ours: expect nothing from now on */
    return f->reply;
}

static const cb_iov *place_request(void *ctx, const wire_header *h)
{
    conn *c = ctx;
    uint32_t slot = peek(&c->free, 0);
    const cb_iov *room = &c->t->c->incoming[c->base + slot];
    if ((h->kind != WIRE_REQUEST && h->kind != WIRE_ONE_WAY) || h->nbytes > room->nbytes)
        return refuse_message(c, h, room->nbytes);
    c->now = pop(&c->free);
    return room;
}

/* The first nbytes of a slot; the slot itself when that is all of it. */
static WIRE_SLOW cb_iov cut(const cb_iov *slot, struct iovec *iov, uint64_t nbytes)
{
    uint64_t left = nbytes;
    if (nbytes == slot->nbytes)
        return *slot;
    for (uint32_t i = 0; i < slot->n; i++) {
        size_t part = slot->iov[i].iov_len < left ? slot->iov[i].iov_len : left;
        iov[i] = (struct iovec){slot->iov[i].iov_base, part};
        left -= part;
    }
    return (cb_iov){iov, slot->n, nbytes};
}

static void delivered(conn *c)
{
    tcp *t = c->t;
    const wire_header *h = &c->in.h;
    uint32_t at = c->base + c->now;
    if (c->asks) {
        t->flights[at].reply_nbytes = h->nbytes;
        t->flights[at].due = false;
        c->owed--;
        push(&t->done, at);
        return;
    }
    arrival *a = &t->arrivals[at];
    a->slot = h->slot;
    a->state = ARRIVED;
    a->in = (cb_incoming){at, c->peer, h->kind == WIRE_REQUEST,
                          cut(&t->c->incoming[at], a->cut, h->nbytes)};
    push(&t->arrived, at);
}

static bool can_receive(const conn *c)
{
    return c->asks || c->in.got > 0 || c->free.count > 0;
}

static const cb_iov *expected(const conn *c)
{
    if (!c->asks)
        return &c->t->c->incoming[c->base + peek(&c->free, 0)];
    if (c->in.careful)          /* only its size matters now */
        return &c->t->c->reply[0];
    return c->expect.count > 0 ? flight_at(c, peek(&c->expect, 0))->reply : NULL;
}

/* Until one message is complete, and those that came with it. Returns how many, -EAGAIN when none
 * came; a message larger than the socket's buffer takes several calls. */
static int receive(conn *c, int flags)
{
    wire_place place = c->asks ? place_reply : place_request;
    int n = 0, rc;
    while (can_receive(c)) {
        if (wire_staged(&c->in))
            rc = wire_take(&c->in, place, c);
        else if (n > 0)
            break;
        else
            rc = wire_read(&c->in, c->fd, flags, expected(c), place, c);
        if (rc == -EAGAIN)
            break;
        if (rc < 0)
            return rc == -EPROTO || rc == -ENOMEM ? rc : lost(c, rc);
        if (rc == 1) {
            delivered(c);
            n++;
        }
        if (rc == 0 && stopped(c->t))
            return cancelled(c->t);
    }
    return n > 0 ? n : -EAGAIN;
}

/* ------------------------------------------------------------------ waiting */

static int have(const tcp *t)
{
    return (t->done.count ? CB_COMPLETED : 0) | (t->arrived.count ? CB_ARRIVED : 0);
}

static struct timespec timespec_of(int64_t ns)
{
    ns = ns < TICK_NS ? ns : TICK_NS;
    return (struct timespec){ns / 1000000000, ns % 1000000000};
}

/* At most one tick, until the connection can be read (unless no slot is free) or written. */
static WIRE_SLOW void doze(const conn *c, int64_t wait_ns)
{
    short events = (short)((can_receive(c) ? POLLIN : 0) | (c->queue.count > 0 ? POLLOUT : 0));
    struct pollfd p = {c->fd, events, 0};
    struct timespec ts = timespec_of(wait_ns);
    ppoll(&p, 1, &ts, NULL);
}

/* Moves one connection on, waiting for it at most one tick. While nothing but our own sending is
 * due, sendmsg() itself may wait; while nothing but a message is, recvmsg() may. */
static int attend(conn *c, int64_t wait_ns)
{
    tcp *t = c->t;
    bool sleep = !t->spin && wait_ns >= TICK_NS;
    if (c->queue.count > 0) {
        bool alone = sleep && c->owed == 0 && !t->c->serves;
        int rc = flush(c, alone ? 0 : MSG_DONTWAIT);
        if (rc < 0 && rc != -EAGAIN)
            return rc;
        if (alone && (rc == -EAGAIN || t->done.count > 0))
            return 0;
    }
    sleep = sleep && c->queue.count == 0 && can_receive(c);
    int rc = receive(c, sleep ? 0 : MSG_DONTWAIT);
    if (rc != -EAGAIN)
        return rc;
    if (!sleep && !t->spin && wait_ns > 0)
        doze(c, wait_ns);
    return 0;
}

static void watch(conn *c, uint32_t events)
{
    struct epoll_event e = {.events = events, .data.ptr = c};
    epoll_ctl(c->t->epoll, EPOLL_CTL_MOD, c->fd, &e);
    c->armed = events;
}

static int on_event(conn *c, uint32_t events)
{
    int rc = 0;
    if (events & EPOLLOUT && (rc = flush(c, MSG_DONTWAIT)) < 0 && rc != -EAGAIN)
        return rc;
    if (!(events & ~(uint32_t)EPOLLOUT))
        return 0;
    if (can_receive(c))
        rc = receive(c, MSG_DONTWAIT);
    else if (events & (EPOLLHUP | EPOLLERR))
        return lost(c, -ECONNRESET);
    else
        watch(c, c->armed & ~(uint32_t)EPOLLIN); /* until a slot is free */
    return rc < 0 && rc != -EAGAIN ? rc : 0;
}

/* What was read ahead wakes nobody: > 0 when there was some. Asks epoll for what is needed. */
static int before_sleep(tcp *t)
{
    int n = 0;
    for (uint32_t i = 0; i < t->nactive; i++) {
        conn *c = t->active[i];
        if (wire_staged(&c->in) && can_receive(c)) {
            int rc = receive(c, MSG_DONTWAIT);
            if (rc < 0 && rc != -EAGAIN)
                return rc;
            n += rc > 0;
        }
        uint32_t needed = (c->queue.count > 0 || c->answering ? EPOLLOUT : 0) |
                          (can_receive(c) ? EPOLLIN : c->armed & EPOLLIN);
        if (needed != c->armed)
            watch(c, needed);
    }
    return n;
}

static WIRE_SLOW int attend_all(tcp *t, int64_t wait_ns)
{
    struct epoll_event events[EVENTS_MAX];
    int rc = before_sleep(t);
    if (rc != 0)
        return rc;
    if (!t->spin && wait_ns > 0 && wait_ns < TICK_NS) { /* finer than epoll_wait() can */
        struct pollfd p = {t->epoll, POLLIN, 0};
        struct timespec ts = timespec_of(wait_ns);
        ppoll(&p, 1, &ts, NULL);
        wait_ns = 0;
    }
    int n = epoll_wait(t->epoll, events, EVENTS_MAX,
                       t->spin || wait_ns == 0 ? 0 : (int)(TICK_NS / 1000000));
    for (int i = 0; i < n; i++)
        if ((rc = on_event(events[i].data.ptr, events[i].events)) < 0)
            return rc;
    return 0;
}

/* The clock is read only when the first look found nothing, and then not at every spin. */
typedef struct patience {
    int64_t timeout_ns, deadline, left;
    uint32_t turn;
} patience;

static patience patience_of(int64_t timeout_ns)
{
    bool fine = timeout_ns > 0 && timeout_ns < TICK_NS;
    return (patience){timeout_ns, fine ? cb_now_ns() + timeout_ns : 0, timeout_ns, 0};
}

static bool over(tcp *t, patience *p)
{
    if (p->turn++ == 0)
        return false;
    if (p->timeout_ns == 0)
        return true;
    if (!p->deadline)
        p->deadline = cb_now_ns() + p->timeout_ns;
    else if (!t->spin || p->turn % 64 == 0)
        p->left = p->deadline - cb_now_ns();
    return p->left <= 0;
}

static int wait_for(tcp *t, int what, int64_t timeout_ns)
{
    patience p = patience_of(timeout_ns);
    for (;;) {
        int ready = have(t) & what;
        if (ready)
            return ready;
        if (stopped(t))
            return cancelled(t);
        if (over(t, &p))
            return 0;
        int rc = t->lone ? attend(t->active[0], p.left) : attend_all(t, p.left);
        if (rc < 0)
            return rc;
    }
}

/* ------------------------------------------------------------------ the verbs */

#define VERB static __attribute__((flatten)) /* see tcp_wire.h */

VERB int post(void *self, int32_t peer, uint64_t ticket, const cb_iov *request,
                const cb_iov *reply)
{
    tcp *t = self;
    conn *c = conn_of(t, peer, true);
    if (!c)
        return refuse(t, -EINVAL, "post() to a rank that is no peer of this case");
    bool idle = c->queue.count == 0;
    int rc = start(c, ticket, request, reply);
    if (rc == 0 && idle)
        rc = flush(c, MSG_DONTWAIT);
    else if (rc == -EAGAIN)
        return refuse(t, -EAGAIN, "the window is full");
    return rc == -EAGAIN ? 0 : rc;
}

VERB int poll_done(void *self, cb_done *done, uint32_t max, int64_t timeout_ns)
{
    tcp *t = self;
    uint32_t n = 0;
    int rc = wait_for(t, CB_COMPLETED, timeout_ns);
    if (rc < 0)
        return rc;
    for (; n < max && t->done.count > 0; n++) {
        uint32_t at = pop(&t->done);
        flight *f = &t->flights[at];
        done[n] = (cb_done){f->ticket, f->reply_nbytes};
        conn *c = t->active[at / t->c->window]; /* asking connections come first */
        push(&c->free, at - c->base);
    }
    return (int)n;
}

VERB int exchange(void *self, int32_t peer, const cb_iov *request, const cb_iov *reply,
                    uint64_t *reply_nbytes, int64_t timeout_ns)
{
    tcp *t = self;
    conn *c = conn_of(t, peer, true);
    if (!c || t->done.count > 0 || start(c, 0, request, reply) < 0)
        return refuse(t, -EINVAL, "exchange() needs a peer with nothing in flight");
    patience p = patience_of(timeout_ns);
    while (t->done.count == 0) {
        if (stopped(t))
            return cancelled(t);
        if (over(t, &p))
            return refuse(t, -ETIMEDOUT, "no reply in time");
        int rc = attend(c, p.left);
        if (rc < 0)
            return rc;
    }
    uint32_t at = pop(&t->done);
    push(&c->free, at - c->base);
    *reply_nbytes = t->flights[at].reply_nbytes;
    return 0;
}

static void release(tcp *t, uint32_t at)
{
    conn *c = conn_of(t, t->arrivals[at].in.peer, false);
    t->arrivals[at].state = FREE;
    push(&c->free, at - c->base);
}

static void release_given(tcp *t)
{
    while (t->given.count > 0)
        release(t, pop(&t->given));
}

VERB int accept_some(void *self, cb_incoming *in, uint32_t max, int64_t timeout_ns)
{
    tcp *t = self;
    uint32_t n = 0;
    release_given(t);
    int rc = wait_for(t, CB_ARRIVED, timeout_ns);
    if (rc < 0)
        return rc;
    for (; n < max && t->arrived.count > 0; n++) {
        uint32_t at = pop(&t->arrived);
        in[n] = t->arrivals[at].in;
        t->arrivals[at].state = OPEN;
        if (!in[n].wants_reply)
            push(&t->given, at);
    }
    return (int)n;
}

static int progress(void *self, int64_t timeout_ns)
{
    tcp *t = self;
    release_given(t);
    return wait_for(t, CB_COMPLETED | CB_ARRIVED, timeout_ns);
}

/* The kernel has no room for an answer. A rank that also asks goes on reading meanwhile, or two
 * that answer each other would wait for ever. */
static WIRE_SLOW int wait_for_room(conn *c, patience *p)
{
    tcp *t = c->t;
    int rc = 0;
    if (stopped(t))
        return cancelled(t);
    if (over(t, p))
        return refuse(t, -ETIMEDOUT, "a peer does not read its answer");
    if (t->c->asks) {
        c->answering = true;
        rc = attend_all(t, TICK_NS);
        c->answering = false;
    }
    return rc < 0 ? rc : 0;
}

static ssize_t send_rest(conn *c, const wire_header *le, const cb_iov *answer, uint64_t sent,
                         int flags)
{
    uint64_t nbytes = 0;
    struct msghdr m = {.msg_iov = c->t->iov};
    if (sent == 0 && wire_flat(answer)) {
        c->t->copied += answer->nbytes;
        return wire_send_flat(c->fd, le, answer, flags);
    }
    m.msg_iovlen = wire_gather(le, answer, sent, c->t->iov, WIRE_IOV_MAX, &nbytes);
    return sendmsg(c->fd, &m, flags);
}

static int send_answer(conn *c, const wire_header *le, const cb_iov *answer)
{
    patience p = patience_of(PATIENCE_NS);
    uint64_t sent = 0, total = sizeof *le + answer->nbytes;
    int flags = MSG_NOSIGNAL | (c->t->spin || c->t->c->asks ? MSG_DONTWAIT : 0), rc = 0;
    while (rc == 0) {
        ssize_t r = send_rest(c, le, answer, sent, flags);
        if (r < 0 && errno != EWOULDBLOCK && errno != EINTR)
            return lost(c, -errno);
        if (r > 0) {
            p = patience_of(PATIENCE_NS);
            sent += (uint64_t)r;
        }
        if (sent == total)
            break;
        rc = wait_for_room(c, &p);
    }
    return rc;
}

VERB int answer(void *self, uint64_t ticket, const cb_iov *message)
{
    tcp *t = self;
    arrival *a = t->c && t->c->serves && ticket < (uint64_t)t->c->window * t->c->npeers
                     ? &t->arrivals[ticket] : NULL;
    if (!a || a->state != OPEN || !a->in.wants_reply)
        return refuse(t, -EINVAL, "no such ticket to answer");
    if (message->nbytes > t->c->answer_nbytes)
        return refuse(t, -EMSGSIZE, "an answer is larger than this case announced");
    wire_header le = wire_pack(message->nbytes, a->slot, WIRE_REPLY);
    int rc = send_answer(conn_of(t, a->in.peer, false), &le, message);
    if (rc == 0)
        release(t, (uint32_t)ticket);
    return rc;
}

/* ------------------------------------------------------------------ cases */

static int finish(void *self)
{
    tcp *t = self;
    for (uint32_t i = 0; i < t->nactive; i++) {
        conn *c = t->active[i];
        if (!t->lone)
            epoll_ctl(t->epoll, EPOLL_CTL_DEL, c->fd, NULL);
        if (c->queue.count > 0 && c->sent > 0)
            c->in.got = 1;      /* the stream ends within a message: prepare() will see it */
        ring_free(&c->free);
        ring_free(&c->expect);
        ring_free(&c->queue);
    }
    t->nactive = 0;
    ring_free(&t->done);
    ring_free(&t->arrived);
    ring_free(&t->given);
    free(t->active);
    free(t->flights);
    free(t->arrivals);
    free(t->cuts);
    t->active = NULL;
    t->flights = NULL;
    t->arrivals = NULL;
    t->cuts = NULL;
    t->c = NULL;
    return 0;
}

static int add_conn(tcp *t, uint32_t index, bool asks, int32_t peer)
{
    conn *c = peer >= 0 && (uint32_t)peer < t->size
                  ? &t->conns[(asks ? 0 : t->size) + (uint32_t)peer] : NULL;
    if (!c || c->fd < 0 || c->free.size)
        return refuse(t, -EINVAL, "a peer of this case is no rank that we are connected to");
    if (wire_busy(&c->in))
        return refuse(t, -EPROTO, "an earlier case ended in the middle of a message");
    uint32_t window = t->c->window;
    if (wire_in_init(&c->in) < 0 || ring_init(&c->free, window) < 0)
        return refuse(t, -ENOMEM, "out of memory");
    t->active[t->nactive++] = c;
    if (ring_init(&c->expect, window) < 0 || ring_init(&c->queue, window) < 0)
        return refuse(t, -ENOMEM, "out of memory");
    c->base = index * window;
    c->sent = c->owed = 0;
    for (uint32_t i = 0; i < window; i++)
        push(&c->free, i);
    c->armed = EPOLLIN;
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    return !t->lone && epoll_ctl(t->epoll, EPOLL_CTL_ADD, c->fd, &e) < 0
               ? refuse(t, -errno, "epoll does not take a connection") : 0;
}

static int allocate(tcp *t)
{
    const cb_case *c = t->c;
    uint32_t slots = c->window * c->npeers;
    size_t buffers = 1;
    for (uint32_t i = 0; c->serves && i < slots; i++)
        buffers += c->incoming[i].n;
    t->active = calloc((size_t)c->npeers * 2 + 1, sizeof(conn *));
    t->flights = calloc((size_t)slots + 1, sizeof *t->flights);
    t->arrivals = calloc((size_t)slots + 1, sizeof *t->arrivals);
    t->cuts = calloc(buffers, sizeof *t->cuts);
    if (!t->active || !t->flights || !t->arrivals || !t->cuts || ring_init(&t->done, slots) < 0 ||
        ring_init(&t->arrived, slots) < 0 || ring_init(&t->given, slots) < 0)
        return refuse(t, -ENOMEM, "out of memory");
    struct iovec *next = t->cuts;
    for (uint32_t i = 0; c->serves && i < slots; next += c->incoming[i++].n)
        t->arrivals[i].cut = next;
    return 0;
}

static int prepare(void *self, const cb_case *c)
{
    tcp *t = self;
    finish(t);
    uint64_t slots = (uint64_t)c->window * c->npeers;
    if (c->window == 0 || slots > UINT32_MAX / 2 || (c->serves && c->nincoming < slots))
        return refuse(t, -EINVAL, "there must be an incoming slot for each message in flight");
    t->c = c;
    t->lone = c->npeers * ((c->asks != 0) + (c->serves != 0)) == 1;
    int rc = allocate(t);
    for (uint32_t i = 0; rc == 0 && c->asks && i < c->npeers; i++)
        rc = add_conn(t, i, true, c->peers[i]);
    for (uint32_t i = 0; rc == 0 && c->serves && i < c->npeers; i++)
        rc = add_conn(t, i, false, c->peers[i]);
    if (rc < 0)
        finish(t);
    return rc;
}

static const char *last_error(void *self)
{
    return ((tcp *)self)->error;
}

static uint64_t copied(void *self)
{
    const tcp *t = self;
    uint64_t nbytes = t->copied;
    for (uint32_t i = 0; i < 2 * t->size; i++)
        nbytes += t->conns[i].in.copied;
    return nbytes;
}

static const cb_channel_ops tcp_ops = {
    .abi_version = COMMBENCH_ABI_VERSION, .struct_size = sizeof(cb_channel_ops),
    .prepare = prepare, .finish = finish, .post = post, .poll = poll_done, .exchange = exchange,
    .accept = accept_some, .answer = answer, .progress = progress, .last_error = last_error,
    .copied = copied,
};

cb_engine *cb_tcp_open(uint32_t size, const int *ask, const int *serve, int spin)
{
    tcp *t = calloc(1, sizeof *t);
    conn *conns = calloc((size_t)size * 2, sizeof *conns);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (!t || !conns || epoll < 0) {
        free(t);
        free(conns);
        if (epoll >= 0)
            close(epoll);
        return NULL;
    }
    for (uint32_t i = 0; i < 2 * size; i++) {
        conns[i].t = t;
        conns[i].asks = i < size;
        conns[i].peer = (int32_t)(i % size);
        conns[i].fd = i < size ? ask[i] : serve[i - size];
    }
    t->engine = (cb_engine){COMMBENCH_ABI_VERSION, sizeof(cb_engine), &tcp_ops, t};
    t->spin = spin != 0;
    t->size = size;
    t->conns = conns;
    t->epoll = epoll;
    refuse(t, 0, "no error");
    return &t->engine;
}

void cb_tcp_close(cb_engine *engine)
{
    tcp *t = engine->self;
    finish(t);
    for (uint32_t i = 0; i < 2 * t->size; i++)
        wire_in_free(&t->conns[i].in);
    close(t->epoll);
    free(t->conns);
    free(t);
}
