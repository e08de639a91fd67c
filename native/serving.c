/* The serving half of the loops: accept, check, handle, answer. */
#include "engines.h"
#include "loops.h"

#include <stdlib.h>

int cb_server_init(cb_run *run, server *s)
{
    *s = (server){0};
    for (uint32_t i = 0; i < run->c->npeers; i++)
        if (run->c->peers[i] >= s->npeers)
            s->npeers = run->c->peers[i] + 1;
    if (run->flags & CB_VERIFY_LAST)
        s->keep = run->serve < run->c->window ? run->serve : run->c->window;
    s->ahead = run->flags & CB_ANY_ORDER ? run->c->window : 1;
    size_t numbers = (size_t)s->npeers * s->ahead;
    s->expected = calloc(numbers + 1, sizeof *s->expected);
    s->last = calloc((size_t)s->keep + 1, sizeof *s->last);
    s->calls = calloc((size_t)s->npeers + 1, sizeof *s->calls);
    if (!s->expected || !s->last || !s->calls)
        return fail(run, -ENOMEM, -1, "out of memory");
    for (size_t i = 0; i < numbers; i++)
        s->expected[i] = run->number + i % s->ahead;
    return 0;
}

void cb_server_free(server *s)
{
    free(s->expected);
    free(s->last);
    free(s->calls);
}

static int send_answer(cb_run *run, uint64_t ticket, const cb_iov *answer, int32_t peer)
{
    int rc = run->engine->ops->answer(run->engine->self, ticket, answer);
    return rc < 0 ? engine_failed(run, rc, peer) : 0;
}

/* The next message of this peer, or in any order one of those that it has in flight. */
static int check_request(cb_run *run, server *s, const cb_incoming *in, uint32_t call)
{
    uint32_t ahead = s->ahead, i = 0, buffer;
    uint64_t *expected = s->expected + (size_t)in->peer * ahead, offset;
    while (i < ahead && verify(run, &in->message, in->peer, expected[i], call, &buffer,
                               &offset) < 0)
        i++;
    if (i == ahead)
        return check_content(run, in->peer, &in->message, in->peer, expected[0], call, "request");
    for (; i + 1 < ahead; i++)
        expected[i] = expected[i + 1];
    expected[ahead - 1]++;
    run->validated++;
    return 0;
}

static int check_request_length(cb_run *run, const cb_incoming *in, uint32_t call)
{
    char line[160];
    uint64_t wanted = run->ncalls ? run->call_nbytes[call] : run->request_nbytes;
    if (!run->parameters || in->message.nbytes == wanted)
        return check_length(run, in->peer, in->message.nbytes, wanted, "request");
    uint32_t n = run->parameters->weights[call].n;
    snprintf(line, sizeof line, "a push has %llu bytes instead of %llu: not the tensor%s %u to %u "
             "of this step", (unsigned long long)in->message.nbytes, (unsigned long long)wanted,
             n > 1 ? "s" : "", call, call + (n > 0 ? n - 1 : 0));
    return fail(run, -EBADMSG, in->peer, line);
}

static int serve_one(cb_run *run, server *s, const cb_incoming *in)
{
    if (in->peer < 0 || in->peer >= s->npeers)
        return fail(run, -EPROTO, in->peer, "a request from a rank that is no peer");
    uint32_t call = call_of(run, s->calls[in->peer]++);
    int rc = check_request_length(run, in, call);
    if (rc < 0)
        return rc;
    if (run->flags & CB_VERIFY_EVERY && (rc = check_request(run, s, in, call)) < 0)
        return rc;
    if (run->serve - run->served <= s->keep)
        s->last[run->serve - run->served - 1] = *in;
    run->served++;
    if (!in->wants_reply && run->handler->ops == cb_sink.ops)
        return 0;
    cb_iov answer = {NULL, 0, 0};
    rc = run->handler->ops->on_request(run->handler->ctx, in, &answer);
    if (rc < 0)
        return fail(run, rc, in->peer, "the handler refused a request");
    if (rc == CB_DEFER) {
        s->deferred++;
        return 0;
    }
    return in->wants_reply ? send_answer(run, in->ticket, &answer, in->peer) : 0;
}

int cb_serve_deferred(cb_run *run, server *s)
{
    uint64_t ticket;
    cb_iov answer;
    while (s->deferred > 0 && run->handler->ops->next_ready &&
           run->handler->ops->next_ready(run->handler->ctx, &ticket, &answer) == 1) {
        int rc = send_answer(run, ticket, &answer, -1);
        if (rc < 0)
            return rc;
        s->deferred--;
    }
    return 0;
}

/* Counts the first of these that need nothing else: one-way, into the sink, as expected. It stands
 * between the last message of a window and its ack, where 64 times serve_one() shows in the rate of
 * single bytes. Returns how many. */
static int sink_some(cb_run *run, const server *s, const cb_incoming *in, int n)
{
    int i = 0;
    if (run->handler->ops != cb_sink.ops || run->flags & CB_VERIFY_EVERY ||
        run->serve - run->served < (uint64_t)n + s->keep)
        return 0;
    while (i < n && !in[i].wants_reply && in[i].message.nbytes == run->request_nbytes &&
           in[i].peer >= 0 && in[i].peer < s->npeers)
        i++;
    run->served += (uint64_t)i;
    return i;
}

int cb_serve_some(cb_run *run, server *s, int64_t timeout_ns)
{
    cb_incoming in[ACCEPT_MAX];
    uint64_t left = run->serve - run->served;
    uint32_t max = left < ACCEPT_MAX ? (uint32_t)left : ACCEPT_MAX;
    int n = run->engine->ops->accept(run->engine->self, in, max, timeout_ns);
    if (n < 0)
        return engine_failed(run, n, -1);
    for (int i = sink_some(run, s, in, n); i < n; i++) {
        int rc = serve_one(run, s, &in[i]);
        if (rc < 0)
            return rc;
    }
    int rc = cb_serve_deferred(run, s);
    return rc < 0 ? rc : n;
}

/* The sums show every push, and the last one need not be there any more. */
static int verify_weights(cb_run *run)
{
    const cb_parameters *p = run->parameters;
    uint32_t call, buffer;
    uint64_t offset, steps = run->serve / ((uint64_t)p->workers * p->ncalls);
    char line[160];
    int rc = cb_check_weights(p, run->seed, run->number, run->flags & CB_VERIFY_EVERY, steps, &call,
                              &buffer, &offset);
    if (rc < 0) {
        snprintf(line, sizeof line, "the weights after %llu steps differ in tensor %u at byte %llu",
                 (unsigned long long)steps, call + buffer, (unsigned long long)offset);
        return fail(run, rc, -1, line);
    }
    run->validated += p->ncalls;
    return 0;
}

int cb_verify_last_requests(cb_run *run, server *s)
{
    if (run->parameters && run->parameters->weights && run->serve > 0)
        return verify_weights(run);
    for (uint64_t i = 0; i < s->keep; i++) {
        int rc = check_content(run, s->last[i].peer, &s->last[i].message, s->last[i].peer,
                               run->number, 0, "request");
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* The other half of a ping-pong, written out: what stands between accept() and answer() is part of
 * every round trip. */
static int serve_echo(cb_run *run, server *s)
{
    const cb_channel_ops *ops = run->engine->ops;
    void *self = run->engine->self;
    int32_t peer = run->c->peers[0];

    while (run->served < run->serve) {
        cb_incoming in;
        int rc = ops->accept(self, &in, 1, run->timeout_ns);
        if (rc <= 0)
            return rc < 0 ? engine_failed(run, rc, peer) : late(run, peer, "request");
        if ((rc = check_length(run, peer, in.message.nbytes, run->request_nbytes, "request")) < 0)
            return rc;
        if ((rc = ops->answer(self, in.ticket, &in.message)) < 0)
            return engine_failed(run, rc, peer);
        run->served++;
        s->last[0] = in;
    }
    return 0;
}

static bool echoes(const cb_run *run)
{
    return run->c->window == 1 && run->c->npeers == 1 && run->c->reply_every == 1 &&
           run->handler->ops == cb_echo.ops && !(run->flags & CB_VERIFY_EVERY) && !run->ncalls;
}

int cb_serve(cb_run *run)
{
    server s;
    int rc = cb_server_init(run, &s);
    if (rc >= 0 && run->serve > 0 && echoes(run))
        rc = serve_echo(run, &s);
    while (rc >= 0 && (run->served < run->serve || s.deferred > 0)) {
        if (run->served == run->serve)
            rc = cb_serve_deferred(run, &s);
        else if ((rc = cb_serve_some(run, &s, run->timeout_ns)) == 0)
            rc = late(run, run->c->npeers == 1 ? run->c->peers[0] : -1, "request");
    }
    if (rc >= 0)
        rc = cb_verify_last_requests(run, &s);
    cb_server_free(&s);
    return rc;
}
