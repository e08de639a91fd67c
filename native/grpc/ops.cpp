// The gRPC engine's table: prepare, ask, serve, finish.
#include "state.h"

namespace commbench {

namespace {

constexpr int64_t kEnding = 2 * kSecond;    // that finish() waits for what it cancelled

State &of(void *self) { return *static_cast<State *>(self); }

int prepare(void *self, const cb_case *c) {
    State &s = of(self);
    if (c->serves && c->nincoming < c->window * c->npeers)
        return s.refuse(-EINVAL, "gRPC needs an incoming slot for each message in flight");
    for (uint32_t i = 0; i < c->npeers; i++)
        if (!s.peer(c->peers[i])) return s.refuse(-EINVAL, "no such peer");
    s.c = c;
    s.cuts.assign(c->nincoming, {});
    s.waiting.assign(c->nincoming, nullptr);
    s.failure = 0;
    s.free_slots.clear();
    for (uint32_t i = c->nincoming; i-- > 0;) s.free_slots.push_back(i);
    return 0;
}

// ---------------------------------------------------------------- asking

int post(void *self, int32_t rank, uint64_t ticket, const cb_iov *request, const cb_iov *reply) {
    State &s = of(self);
    Peer *peer = s.peer(rank);
    if (!peer) return s.refuse(-EINVAL, "no such peer");
    if (peer->in_flight >= s.c->window) return -EAGAIN;
    grpc::ByteBuffer wire = s.codec->encode(*request);
    if (!wire.Valid()) return s.refuse(-EMSGSIZE, "protobuf refuses the request: 2 GiB at most");
    grpc::GenericStub &stub = *peer->stubs[peer->next];
    if (++peer->next == peer->stubs.size()) peer->next = 0;
    (new Ask(s, rank, ticket, reply))->start(stub, reply ? kAsk : kSend, wire);
    return 0;
}

int poll_done(void *self, cb_done *done, uint32_t max, int64_t timeout_ns) {
    State &s = of(self);
    int rc = s.run_until([&s] { return !s.done.empty(); }, timeout_ns);
    if (rc <= 0) return rc;
    uint32_t n = 0;
    for (; n < max && !s.done.empty(); n++) {
        Ask *ask = s.done.front();
        s.done.pop_front();
        uint64_t ticket = ask->ticket;
        int64_t nbytes = ask->end();
        if (nbytes < 0) return static_cast<int>(nbytes);
        done[n] = {ticket, static_cast<uint64_t>(nbytes)};
    }
    return static_cast<int>(n);
}

int exchange(void *self, int32_t peer, const cb_iov *request, const cb_iov *reply,
             uint64_t *reply_nbytes, int64_t timeout_ns) {
    State &s = of(self);
    int rc = post(self, peer, 0, request, reply);
    if (rc < 0) return rc;
    cb_done done{};
    rc = poll_done(self, &done, 1, timeout_ns);
    if (rc == 0) {
        for (Ask *ask : s.asking.all()) ask->context.TryCancel();
        return s.refuse(-ETIMEDOUT, s.name(peer) + ": no reply in time");
    }
    if (rc < 0) return rc;
    *reply_nbytes = done.reply_nbytes;
    return 0;
}

// ---------------------------------------------------------------- serving

void reclaim(State &s) {
    s.free_slots.insert(s.free_slots.end(), s.lent.begin(), s.lent.end());
    s.lent.clear();
    s.deliver();
}


// Answers are given to the kernel before the application goes on.
int flush(State &s) {
    int rc = s.run_until([&s] { return s.writing == 0; }, kPatience);
    return rc == 0 ? s.refuse(-ETIMEDOUT, "a peer does not read its answer") : rc < 0 ? rc : 0;
}

int accept_some(void *self, cb_incoming *in, uint32_t max, int64_t timeout_ns) {
    State &s = of(self);
    reclaim(s);
    int rc = s.run_until([&s] { return !s.delivered.empty(); }, timeout_ns);
    if (rc <= 0) return rc;
    uint32_t n = 0;
    for (; n < max && !s.delivered.empty(); n++) {
        in[n] = s.delivered.front();
        s.delivered.pop_front();
        if (!in[n].wants_reply) s.lent.push_back(static_cast<uint32_t>(in[n].ticket));
    }
    if (!s.lent.empty() && (rc = flush(s)) < 0) return rc;
    return static_cast<int>(n);
}

int answer(void *self, uint64_t ticket, const cb_iov *message) {
    State &s = of(self);
    Serve *call = ticket < s.waiting.size() ? s.waiting[ticket] : nullptr;
    if (!call) return s.refuse(-EINVAL, "no such ticket to answer");
    s.waiting[ticket] = nullptr;
    call->reply(*message);
    return flush(s);
}

int progress(void *self, int64_t timeout_ns) {
    State &s = of(self);
    reclaim(s);
    int rc = s.run_until([&s] { return !s.done.empty() || !s.delivered.empty(); }, timeout_ns);
    if (rc <= 0) return rc;
    return (s.done.empty() ? 0 : CB_COMPLETED) | (s.delivered.empty() ? 0 : CB_ARRIVED);
}

const char *last_error(void *self) { return of(self).error.c_str(); }

uint64_t copied(void *self) { return of(self).codec->copied(); }

}  // namespace

int finish(void *self) {
    State &s = of(self);
    const grpc::Status over(grpc::StatusCode::CANCELLED, "the case is over");
    for (Serve *call : s.arrived) call->finish(over);
    s.arrived.clear();
    s.delivered.clear();
    s.free_slots.clear();
    for (Serve *call : s.waiting)
        if (call) call->finish(over);
    s.waiting.clear();
    for (Ask *ask : s.asking.all()) ask->context.TryCancel();
    auto quiet = [&s] {
        for (; !s.done.empty(); s.done.pop_front()) s.done.front()->end();
        return s.asking.empty() && s.writing == 0 && s.codec->referring() == 0;
    };
    int rc = s.run_until(quiet, kEnding, false);
    s.c = nullptr;
    s.lent.clear();
    if (rc == 1) return 0;
    s.disconnect();
    return s.refuse(-ETIMEDOUT, "gRPC does not let go of the last messages");
}

cb_channel_ops make_ops() {
    cb_channel_ops ops{};
    ops.abi_version = COMMBENCH_ABI_VERSION;
    ops.struct_size = sizeof(cb_channel_ops);
    ops.prepare = prepare;
    ops.finish = finish;
    ops.post = post;
    ops.poll = poll_done;
    ops.exchange = exchange;
    ops.accept = accept_some;
    ops.answer = answer;
    ops.progress = progress;
    ops.last_error = last_error;
    ops.copied = copied;
    return ops;
}

}  // namespace commbench
