/* The handler of a parameter server: adds what workers push into accumulators, answers with them. */
#include "engines.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

/* Both sets of weights are used in turn: the answers of one step may still be on their way when a
 * fast worker's push of the next step comes. When the one after that comes, every worker has its
 * answer of the first. The first push of a step reads one set and writes the other, which costs no
 * more than adding in place. */
static const cb_iov *weights_at(const cb_accumulate *a, uint64_t step)
{
    const cb_parameters *p = a->p;
    return p->weights + (p->deferred ? step % 2 : 0) * p->ncalls;
}

static void add(float *restrict to, const float *from, const float *restrict gradient, uint64_t n)
{
    for (uint64_t k = 0; k < n; k++)
        to[k] = from[k] + gradient[k];
}

static void add_in_place(float *restrict to, const float *restrict gradient, uint64_t n)
{
    for (uint64_t k = 0; k < n; k++)
        to[k] += gradient[k];
}

/* The answer goes where the gradient was: others may push while it is on its way. */
static void add_and_copy(float *restrict to, float *restrict gradient, uint64_t n)
{
    for (uint64_t k = 0; k < n; k++)
        gradient[k] = to[k] += gradient[k];
}

static void add_buffer(const cb_accumulate *a, bool first, float *to, const float *from,
                       float *gradient, uint64_t n)
{
    if (!a->p->deferred)
        add_and_copy(to, gradient, n);
    else if (first)
        add(to, from, gradient, n);
    else
        add_in_place(to, gradient, n);
}

/* -EBADMSG when the buffers of the message are not those of the weights. */
static int add_message(cb_accumulate *a, uint32_t call, uint64_t step, bool first,
                       const cb_iov *message)
{
    const cb_iov *to = &weights_at(a, step)[call], *from = &weights_at(a, step + 1)[call];
    if (message->nbytes != to->nbytes)
        return -EBADMSG;
    for (uint32_t b = 0; b < to->n; b++) {
        size_t nbytes = to->iov[b].iov_len;
        if (nbytes == 0)
            continue;
        if (b >= message->n || message->iov[b].iov_len != nbytes)
            return -EBADMSG;
        add_buffer(a, first, to->iov[b].iov_base, from->iov[b].iov_base, message->iov[b].iov_base,
                   nbytes / sizeof(float));
        a->elements += nbytes / sizeof(float);
    }
    return 0;
}

/* A step of one call is complete when every worker has pushed it: no worker goes on before. */
static int gather(cb_accumulate *a, uint32_t worker, const cb_incoming *in)
{
    uint32_t call = (uint32_t)(a->turn % a->p->ncalls);
    if (a->pushes[worker] != a->turn)
        return -EPROTO;         /* twice in one step */
    int rc = add_message(a, call, a->turn / a->p->ncalls, a->pushed == 0, &in->message);
    if (rc < 0)
        return rc;
    a->tickets[a->pushed++] = in->ticket;
    a->pushes[worker]++;
    return CB_DEFER;
}

static int push(void *ctx, const cb_incoming *in, cb_iov *answer)
{
    cb_accumulate *a = ctx;
    int64_t worker = (int64_t)in->peer - a->p->first_worker;
    if (worker < 0 || worker >= a->p->workers)
        return -EPROTO;
    if (a->p->deferred)
        return gather(a, (uint32_t)worker, in);
    uint32_t call = (uint32_t)(a->pushes[worker]++ % a->p->ncalls);
    *answer = in->message;
    int rc = add_message(a, call, 0, false, &in->message);
    return rc < 0 ? rc : CB_ANSWER;
}

static int pull(void *ctx, uint64_t *ticket, cb_iov *answer)
{
    cb_accumulate *a = ctx;
    if (a->pushed < a->p->workers)
        return 0;
    *answer = weights_at(a, a->turn / a->p->ncalls)[a->turn % a->p->ncalls];
    *ticket = a->tickets[a->pulled++];
    if (a->pulled == a->p->workers) {
        a->pushed = a->pulled = 0;
        a->turn++;
    }
    return 1;
}

static const cb_handler_ops accumulate_ops = {COMMBENCH_ABI_VERSION, sizeof(cb_handler_ops), push,
                                              pull};

cb_handler cb_accumulator(cb_accumulate *a, const cb_parameters *p)
{
    *a = (cb_accumulate){.p = p};
    a->pushes = calloc((size_t)p->workers + 1, sizeof *a->pushes);
    a->tickets = calloc((size_t)p->workers + 1, sizeof *a->tickets);
    return (cb_handler){a->pushes && a->tickets ? &accumulate_ops : NULL, a};
}

void cb_accumulator_free(cb_accumulate *a)
{
    free(a->pushes);
    free(a->tickets);
}

int cb_check_weights(const cb_parameters *p, uint64_t seed, uint64_t number, bool every,
                     uint64_t steps, uint32_t *call, uint32_t *buffer, uint64_t *offset)
{
    const cb_iov *held = p->weights + (p->deferred && steps > 0 ? (steps - 1) % 2 : 0) * p->ncalls;
    float expected[CB_GRADIENT_CYCLE];
    for (*call = 0; *call < p->ncalls; ++*call) {
        cb_weights_of(p, every ? number + *call : number, every ? p->ncalls : 0, steps, expected);
        int rc = cb_verify_floats(&held[*call], seed, *call, expected, buffer, offset);
        if (rc < 0)
            return rc;
    }
    return 0;
}
