// The calls of the gRPC engine, out and in.
#include "state.h"

namespace commbench {

const char kAsk[] = "/commbench/Ask", kSend[] = "/commbench/Send", kHello[] = "/commbench/Hello";

namespace {

// gRPC's codes as errno; -EPROTO for what has no better one.
int errno_of(grpc::StatusCode code) {
    switch (code) {
        case grpc::StatusCode::UNAVAILABLE: return -ECONNRESET;
        case grpc::StatusCode::DEADLINE_EXCEEDED: return -ETIMEDOUT;
        case grpc::StatusCode::UNAUTHENTICATED: return -EACCES;
        default: return -EPROTO;
    }
}

}  // namespace

// ---------------------------------------------------------------- out

void Ask::start(grpc::GenericStub &stub, const char *method, const grpc::ByteBuffer &request) {
    s.asking.add(this);
    s.peers[peer].in_flight++;
    call = stub.PrepareUnaryCall(&context, method, request, s.queue.get());
    call->StartCall();
    call->Finish(&response, &status, this);
}

void Ask::done(bool) { s.done.push_back(this); }

int64_t Ask::end() {
    std::unique_ptr<Ask> self(this);
    s.asking.drop(this);
    s.peers[peer].in_flight--;
    if (!status.ok()) {
        const char *how = status.error_code() == grpc::StatusCode::UNAVAILABLE ? " is gone: " : ": ";
        return s.refuse(errno_of(status.error_code()), s.name(peer) + how + status.error_message());
    }
    if (hello) s.went.emplace_back(peer, context.peer());
    if (!reply) return 0;
    int64_t nbytes = s.codec->decode(&response, *reply);
    return nbytes < 0 ? s.misfit(peer, "reply", nbytes) : nbytes;
}

// ---------------------------------------------------------------- in

Serve::Serve(State &s) : s(s) {
    s.serving.add(this);
    s.service.RequestCall(&context, &stream, s.queue.get(), s.queue.get(), this);
}

void Serve::done(bool ok) {
    switch (stage) {
        case kWaiting:
            if (!ok) return end();
            s.arm();
            return admit();
        case kReading:
            if (!ok) return finish(grpc::Status::CANCELLED);
            stage = kArrived;
            s.arrived.push_back(this);
            return s.deliver();
        case kWriting:
            s.writing--;
            return end();
        case kArrived:
            return;
    }
}

// The token, in the first word of the user agent, before anything of the request: of a stranger's
// call gRPC holds no more than one HTTP/2 window.
void Serve::admit() {
    const auto &metadata = context.client_metadata();
    auto agent = metadata.find("user-agent");
    auto found = s.ranks.end();
    if (agent != metadata.end()) {
        std::string_view words(agent->second.data(), agent->second.size());
        found = s.ranks.find(words.substr(0, words.find(' ')));
    }
    if (found == s.ranks.end())
        return finish({grpc::StatusCode::UNAUTHENTICATED,
                       "this call does not carry the run's token"});
    peer = found->second;
    wants_reply = context.method() == kAsk;
    if (context.method() == kHello) {
        s.came.emplace_back(peer, context.peer());
        return reply({nullptr, 0, 0});
    }
    if (!wants_reply && context.method() != kSend)
        return finish({grpc::StatusCode::UNIMPLEMENTED, "no such method"});
    stage = kReading;
    stream.Read(&request, this);
}

void Serve::reply(const cb_iov &answer) {
    grpc::ByteBuffer wire = s.codec->encode(answer);
    if (!wire.Valid()) return finish({grpc::StatusCode::INTERNAL, "protobuf refuses the answer"});
    begin_write();
    stream.WriteAndFinish(wire, grpc::WriteOptions(), grpc::Status::OK, this);
}

void Serve::finish(const grpc::Status &status) {
    begin_write();
    stream.Finish(status, this);
}

void Serve::begin_write() {
    stage = kWriting;
    s.writing++;
}

// A slot goes back only now: the answer may have been made of it.
void Serve::end() {
    State &state = s;
    if (slot >= 0) state.free_slots.push_back(static_cast<uint32_t>(slot));
    state.serving.drop(this);
    delete this;
    state.deliver();
}

namespace {

// The first nbytes of a slot.
cb_iov cut(State &s, uint32_t index, uint64_t nbytes) {
    const cb_iov &slot = s.c->incoming[index];
    if (nbytes == slot.nbytes) return slot;
    std::vector<iovec> &iov = s.cuts[index];
    iov.assign(slot.iov, slot.iov + slot.n);
    uint64_t rest = nbytes;
    for (iovec &v : iov) {
        v.iov_len = std::min<uint64_t>(v.iov_len, rest);
        rest -= v.iov_len;
    }
    return {iov.data(), slot.n, nbytes};
}

// Into a slot. One-way: acknowledged at once.
int take(State &s, Serve *call, uint32_t slot) {
    int64_t nbytes = s.codec->decode(&call->request, s.c->incoming[slot]);
    if (nbytes < 0) {
        call->finish({grpc::StatusCode::FAILED_PRECONDITION, "not a message for the server's slot"});
        return s.misfit(call->peer, "request", nbytes);
    }
    s.free_slots.pop_back();
    cb_iov message = cut(s, slot, static_cast<uint64_t>(nbytes));
    s.delivered.push_back({slot, call->peer, call->wants_reply, message});
    if (call->wants_reply) {
        call->slot = slot;
        s.waiting[slot] = call;
    } else {
        call->reply({nullptr, 0, 0});
    }
    return 0;
}

}  // namespace

// Arrived requests into free slots.
void State::deliver() {
    while (failure == 0 && !arrived.empty() && !free_slots.empty()) {
        Serve *call = arrived.front();
        arrived.pop_front();
        failure = take(*this, call, free_slots.back());
    }
}

}  // namespace commbench
