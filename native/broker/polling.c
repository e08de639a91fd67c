/* The polling thread and the queues; see polling.h. */
#define _GNU_SOURCE
#include "polling.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TAKE 16
#define SPINS 2000              /* looks in vain before others may have the processor */

typedef struct command {        /* of the processing thread */
    bool asks;
    int32_t peer;
    uint64_t ticket;
    const cb_iov *request, *reply;  /* asks; both last until finish() */
    cb_iov answer;
} command;

typedef struct queue {          /* never overfull: there are slots for so many */
    char *items;
    size_t size;                /* of an item */
    uint32_t capacity, head, count;
} queue;

struct cb_polling {
    cb_engine engine;           /* in front */
    const cb_engine *real;
    const cb_case *c;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t news;
    queue arrived, done, commands;
    uint32_t waiting;           /* commands, looked at without the lock */
    bool sleeping, over;
    int rc;                     /* of the thread */
    char message[256];
};

static bool make_queue(queue *q, size_t size, uint32_t capacity)
{
    *q = (queue){calloc((size_t)capacity + 1, size), size, capacity + 1, 0, 0};
    return q->items != NULL;
}

static void push(queue *q, const void *item)
{
    memcpy(q->items + q->size * ((q->head + q->count++) % q->capacity), item, q->size);
}

static bool pop(queue *q, void *item)
{
    if (q->count == 0)
        return false;
    memcpy(item, q->items + q->size * q->head, q->size);
    q->head = (q->head + 1) % q->capacity;
    q->count--;
    return true;
}

/* ------------------------------------------------------------------ the polling thread */

static int carry_out(cb_polling *p, const command *order)
{
    const cb_channel_ops *ops = p->real->ops;
    void *self = p->real->self;
    if (!order->asks)
        return ops->answer(self, order->ticket, &order->answer);
    int rc;
    do                          /* the processing thread keeps to the window */
        rc = ops->post(self, order->peer, order->ticket, order->request, order->reply);
    while (rc == -EAGAIN && !__atomic_load_n(p->c->stop, __ATOMIC_RELAXED));
    return rc;
}

static int carry_out_all(cb_polling *p)
{
    int rc = 0;
    while (rc >= 0 && __atomic_load_n(&p->waiting, __ATOMIC_ACQUIRE) > 0) {
        command order;
        pthread_mutex_lock(&p->lock);
        pop(&p->commands, &order);
        __atomic_sub_fetch(&p->waiting, 1, __ATOMIC_RELEASE);
        pthread_mutex_unlock(&p->lock);
        rc = carry_out(p, &order);
    }
    return rc;
}

static void hand_over(cb_polling *p, const cb_incoming *in, int n, const cb_done *done, int m)
{
    pthread_mutex_lock(&p->lock);
    for (int i = 0; i < n; i++)
        push(&p->arrived, &in[i]);
    for (int i = 0; i < m; i++)
        push(&p->done, &done[i]);
    if (p->sleeping)
        pthread_cond_signal(&p->news);
    pthread_mutex_unlock(&p->lock);
}

/* Returns how much came, or < 0. */
static int look(cb_polling *p)
{
    const cb_channel_ops *ops = p->real->ops;
    void *self = p->real->self;
    cb_incoming in[TAKE];
    cb_done done[TAKE];
    int n = ops->accept(self, in, TAKE, 0);
    int m = n >= 0 && p->c->asks ? ops->poll(self, done, TAKE, 0) : 0;
    if (n < 0 || m < 0)
        return n < 0 ? n : m;
    if (n + m > 0)
        hand_over(p, in, n, done, m);
    return n + m;
}

static void *run(void *argument)
{
    cb_polling *p = argument;
    uint32_t vain = 0;
    int rc = 0;
    while (rc >= 0 && !(__atomic_load_n(&p->over, __ATOMIC_ACQUIRE) &&
                        __atomic_load_n(&p->waiting, __ATOMIC_ACQUIRE) == 0)) {
        if ((rc = carry_out_all(p)) >= 0)
            rc = look(p);
        vain = rc > 0 ? 0 : vain + 1;
        if (vain > SPINS)
            sched_yield();
    }
    pthread_mutex_lock(&p->lock);
    if (rc < 0) {
        p->rc = rc;
        snprintf(p->message, sizeof p->message, "%s", p->real->ops->last_error(p->real->self));
    }
    pthread_cond_signal(&p->news);
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* ------------------------------------------------------------------ the engine in front */

static struct timespec after(int64_t ns)
{
    int64_t until = cb_now_ns() + ns;
    return (struct timespec){until / 1000000000, until % 1000000000};
}

/* With the lock: until one of the wanted queues has something, or the thread has failed. */
static int wait_for(cb_polling *p, int what, int64_t timeout_ns)
{
    struct timespec until = after(timeout_ns);
    int late = timeout_ns == 0;
    for (;;) {
        int ready = (p->done.count ? CB_COMPLETED : 0) | (p->arrived.count ? CB_ARRIVED : 0);
        if (ready & what)
            return ready & what;
        if (p->rc < 0 || late)
            return p->rc;
        p->sleeping = true;
        late = pthread_cond_timedwait(&p->news, &p->lock, &until) == ETIMEDOUT;
        p->sleeping = false;
    }
}

static int accept_some(void *self, cb_incoming *in, uint32_t max, int64_t timeout_ns)
{
    cb_polling *p = self;
    uint32_t n = 0;
    pthread_mutex_lock(&p->lock);
    int rc = wait_for(p, CB_ARRIVED, timeout_ns);
    while (rc > 0 && n < max && pop(&p->arrived, &in[n]))
        n++;
    pthread_mutex_unlock(&p->lock);
    return rc < 0 ? rc : (int)n;
}

static int poll_done(void *self, cb_done *done, uint32_t max, int64_t timeout_ns)
{
    cb_polling *p = self;
    uint32_t n = 0;
    pthread_mutex_lock(&p->lock);
    int rc = wait_for(p, CB_COMPLETED, timeout_ns);
    while (rc > 0 && n < max && pop(&p->done, &done[n]))
        n++;
    pthread_mutex_unlock(&p->lock);
    return rc < 0 ? rc : (int)n;
}

static int progress(void *self, int64_t timeout_ns)
{
    cb_polling *p = self;
    pthread_mutex_lock(&p->lock);
    int rc = wait_for(p, CB_COMPLETED | CB_ARRIVED, timeout_ns);
    pthread_mutex_unlock(&p->lock);
    return rc;
}

static int give(cb_polling *p, const command *order)
{
    pthread_mutex_lock(&p->lock);
    int rc = p->rc;
    if (rc == 0) {
        push(&p->commands, order);
        __atomic_add_fetch(&p->waiting, 1, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&p->lock);
    return rc;
}

static int answer(void *self, uint64_t ticket, const cb_iov *message)
{
    const command order = {.ticket = ticket, .answer = *message};
    return give(self, &order);
}

static int post(void *self, int32_t peer, uint64_t ticket, const cb_iov *request,
                const cb_iov *reply)
{
    const command order = {.asks = true, .peer = peer, .ticket = ticket, .request = request,
                           .reply = reply};
    return give(self, &order);
}

static const char *last_error(void *self)
{
    return ((cb_polling *)self)->message;
}

static const cb_channel_ops front_ops = {
    .abi_version = COMMBENCH_ABI_VERSION, .struct_size = sizeof(cb_channel_ops),
    .post = post, .poll = poll_done, .accept = accept_some, .answer = answer,
    .progress = progress, .last_error = last_error,
};

/* ------------------------------------------------------------------ beginning and end */

static bool make_condition(cb_polling *p)
{
    pthread_condattr_t attributes;
    if (pthread_condattr_init(&attributes) != 0)
        return false;
    bool made = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) == 0 &&
                pthread_cond_init(&p->news, &attributes) == 0;
    pthread_condattr_destroy(&attributes);
    return made;
}

static void free_polling(cb_polling *p)
{
    free(p->arrived.items);
    free(p->done.items);
    free(p->commands.items);
    free(p);
}

cb_polling *cb_polling_start(const cb_engine *engine, const cb_case *c)
{
    cb_polling *p = calloc(1, sizeof *p);
    uint32_t slots = c->nincoming + c->nrequest;
    if (!p)
        return NULL;
    p->real = engine;
    p->c = c;
    p->engine = (cb_engine){COMMBENCH_ABI_VERSION, sizeof(cb_engine), &front_ops, p};
    pthread_mutex_init(&p->lock, NULL);
    if (!make_queue(&p->arrived, sizeof(cb_incoming), slots) ||
        !make_queue(&p->done, sizeof(cb_done), slots) ||
        !make_queue(&p->commands, sizeof(command), slots) || !make_condition(p) ||
        pthread_create(&p->thread, NULL, run, p) != 0) {
        free_polling(p);
        return NULL;
    }
    return p;
}

const cb_engine *cb_polling_engine(cb_polling *p)
{
    return &p->engine;
}

int cb_polling_stop(cb_polling *p, char message[256])
{
    __atomic_store_n(&p->over, true, __ATOMIC_RELEASE);
    pthread_join(p->thread, NULL);
    int rc = p->rc;
    if (rc < 0)
        memcpy(message, p->message, sizeof p->message);
    pthread_cond_destroy(&p->news);
    pthread_mutex_destroy(&p->lock);
    free_polling(p);
    return rc;
}
