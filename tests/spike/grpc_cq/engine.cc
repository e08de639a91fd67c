// grpc_cq: see engine.h. What the ABI asks for, and how gRPC's completion queue gives it:
//
//  - One ServerCompletionQueue carries the calls of both directions, so that progress() can wait
//    for completions and arrivals at once. Nothing moves while nobody runs it, so answer() runs it
//    until the answer is out: the application may turn to other things afterwards.
//  - A message is a ByteBuffer with one slice per iovec. Large slices refer to the application's
//    memory and count themselves, so that finish() knows when gRPC has let go of all of them.
//  - What arrives stays in gRPC's slices until accept() or poll() copies it into a slot.
#include "engine.h"

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <stdexcept>
#include <unordered_map>
#include <unordered_set>

namespace grpc_cq {

namespace {

constexpr char kCredential[] = "commbench-credential";
constexpr char kAsk[] = "/commbench/Ask", kSend[] = "/commbench/Send", kHello[] = "/commbench/Hello";
constexpr size_t kCopied = 256;             // bytes; a smaller buffer is copied into its slice
constexpr int kArmed = 16;                  // calls that the server waits for
constexpr int64_t kSlice = 50'000'000;      // ns between two looks at the stop flag
constexpr int64_t kEnding = 2'000'000'000;  // ns that finish() waits for what it cancelled
constexpr int64_t kPatience = 60'000'000'000;  // ns for an answer that nobody reads

int64_t now_ns() {
    gpr_timespec t = gpr_now(GPR_CLOCK_MONOTONIC);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

gpr_timespec at_ns(int64_t ns) {
    gpr_timespec t;
    t.tv_sec = ns / 1000000000;
    t.tv_nsec = static_cast<int32_t>(ns % 1000000000);
    t.clock_type = GPR_CLOCK_MONOTONIC;
    return t;
}

// What the completion queue hands back.
struct Event {
    virtual ~Event() = default;
    virtual void done(bool ok) = 0;
};

// A slot's memory, cut to what arrived.
struct Slot {
    std::vector<iovec> iov;
};

}  // namespace

struct Ask;
struct Serve;

struct State {
    cb_engine engine{};
    std::vector<std::string> credentials;
    int rank;
    std::string address, error = "no error";

    grpc::AsyncGenericService service;
    std::unique_ptr<grpc::ServerCompletionQueue> queue;
    std::unique_ptr<grpc::Server> server;
    std::vector<std::unique_ptr<grpc::GenericStub>> stubs;  // by rank; null: this one

    const cb_case *c = nullptr;
    std::vector<Slot> slots;                // of c->incoming
    std::vector<uint32_t> free_slots, lent; // lent: one-way, handed out by the last accept()
    std::vector<uint32_t> in_flight;        // posts, by rank
    std::unordered_set<Ask *> asking;
    std::deque<Ask *> done;
    std::deque<Serve *> arrived;
    std::unordered_map<uint64_t, Serve *> waiting;  // for their answer, by ticket
    std::unordered_set<Serve *> serving;            // every call of the server
    uint64_t next_ticket = 0;
    int writing = 0, hellos = 0;
    long referring = 0;                     // slices that refer to the application's memory
    bool closing = false;

    int refuse(int code, const std::string &why) {
        error = why;
        return code;
    }

    // Handles one event; false when none came before the deadline.
    bool step(int64_t deadline_ns) {
        void *tag;
        bool ok;
        if (queue->AsyncNext(&tag, &ok, at_ns(deadline_ns)) != grpc::CompletionQueue::GOT_EVENT)
            return false;
        static_cast<Event *>(tag)->done(ok);
        return true;
    }

    bool stopped() const { return c && __atomic_load_n(c->stop, __ATOMIC_RELAXED) != 0; }

    // 1 when `ready`, 0 when it did not come true in time, -ECANCELED.
    template <class Ready>
    int run_until(Ready ready, int64_t timeout_ns, bool stoppable = true) {
        if (ready()) return 1;
        int64_t deadline = now_ns() + timeout_ns;
        for (;;) {
            int64_t now = now_ns();
            step(std::min(deadline, now + kSlice));
            if (ready()) return 1;
            if (stoppable && stopped()) return refuse(-ECANCELED, "the run was stopped");
            if (now_ns() >= deadline) return 0;
        }
    }

    grpc::ByteBuffer wrap(const cb_iov *message) {
        std::vector<grpc::Slice> slices;
        slices.reserve(message->n);
        for (uint32_t i = 0; i < message->n; i++) {
            const iovec &v = message->iov[i];
            if (v.iov_len == 0) continue;
            if (v.iov_len <= kCopied) {
                slices.emplace_back(v.iov_base, v.iov_len);
                continue;
            }
            __atomic_add_fetch(&referring, 1, __ATOMIC_RELAXED);
            slices.emplace_back(v.iov_base, v.iov_len, [](void *count) {
                __atomic_sub_fetch(static_cast<long *>(count), 1, __ATOMIC_RELEASE);
            }, &referring);
        }
        return grpc::ByteBuffer(slices.data(), slices.size());
    }

    // Copies into the buffers of a slot; the caller has checked that it fits.
    static void unwrap(const grpc::ByteBuffer &buffer, const cb_iov *slot) {
        std::vector<grpc::Slice> slices;
        if (!buffer.Dump(&slices).ok()) return;
        uint32_t i = 0;
        size_t at = 0;
        for (const grpc::Slice &slice : slices)
            for (size_t used = 0; used < slice.size();) {
                while (at == slot->iov[i].iov_len) i++, at = 0;
                size_t part = std::min(slice.size() - used, slot->iov[i].iov_len - at);
                std::memcpy(static_cast<char *>(slot->iov[i].iov_base) + at, slice.begin() + used,
                            part);
                used += part;
                at += part;
            }
    }

    // The first nbytes of a slot.
    cb_iov cut(uint32_t index, uint64_t nbytes) {
        const cb_iov &slot = c->incoming[index];
        if (nbytes == slot.nbytes) return slot;
        std::vector<iovec> &iov = slots[index].iov;
        iov.assign(slot.iov, slot.iov + slot.n);
        uint64_t rest = nbytes;
        for (iovec &v : iov) {
            v.iov_len = std::min<uint64_t>(v.iov_len, rest);
            rest -= v.iov_len;
        }
        return {iov.data(), static_cast<uint32_t>(iov.size()), nbytes};
    }

    Ask *ask(int peer, const char *method, uint64_t ticket, const cb_iov *request,
             const cb_iov *reply);
    void arm();
};

namespace {

// gRPC's codes as errno; -EPROTO for what has no better one.
int errno_of(grpc::StatusCode code) {
    switch (code) {
        case grpc::StatusCode::UNAVAILABLE: return -ECONNRESET;
        case grpc::StatusCode::DEADLINE_EXCEEDED: return -ETIMEDOUT;
        case grpc::StatusCode::CANCELLED: return -ECONNABORTED;
        case grpc::StatusCode::UNAUTHENTICATED: return -EACCES;
        default: return -EPROTO;
    }
}

}  // namespace

// ---------------------------------------------------------------- one call out

struct Ask final : Event {
    State &s;
    int peer;
    uint64_t ticket;
    const cb_iov *reply;
    grpc::ClientContext context;
    grpc::ByteBuffer response;
    grpc::Status status;
    std::unique_ptr<grpc::GenericClientAsyncResponseReader> call;

    Ask(State &s, int peer, uint64_t ticket, const cb_iov *reply)
        : s(s), peer(peer), ticket(ticket), reply(reply) {}

    void done(bool) override { s.done.push_back(this); }

    // Bytes of the reply, or -errno with the state's error. The call is gone afterwards.
    int64_t end() {
        std::unique_ptr<Ask> self(this);
        s.asking.erase(this);
        s.in_flight[peer]--;
        if (!status.ok())
            return s.refuse(errno_of(status.error_code()),
                            "rank " + std::to_string(peer) + ": " + status.error_message());
        if (!reply) return 0;
        uint64_t nbytes = response.Length();
        if (nbytes > reply->nbytes) return s.refuse(-EMSGSIZE, "a reply is larger than its slot");
        State::unwrap(response, reply);
        return static_cast<int64_t>(nbytes);
    }
};

Ask *State::ask(int peer, const char *method, uint64_t ticket, const cb_iov *request,
                const cb_iov *reply) {
    Ask *a = new Ask(*this, peer, ticket, reply);
    a->context.AddMetadata(kCredential, credentials[rank]);
    a->context.set_wait_for_ready(method == kHello);
    asking.insert(a);
    in_flight[peer]++;
    a->call = stubs[peer]->PrepareUnaryCall(&a->context, method, wrap(request), queue.get());
    a->call->StartCall();
    a->call->Finish(&a->response, &a->status, a);
    return a;
}

// ---------------------------------------------------------------- one call in

struct Serve final : Event {
    enum { kWaiting, kReading, kArrived, kWriting } stage = kWaiting;
    State &s;
    int peer = -1;
    bool wants_reply = false;
    uint64_t ticket = 0;
    int64_t slot = -1;
    grpc::GenericServerContext context;
    grpc::GenericServerAsyncReaderWriter stream{&context};
    grpc::ByteBuffer request;

    explicit Serve(State &s) : s(s) {
        s.serving.insert(this);
        s.service.RequestCall(&context, &stream, s.queue.get(), s.queue.get(), this);
    }

    void done(bool ok) override {
        switch (stage) {
            case kWaiting:
                if (!ok) return end();
                s.arm();
                return admit();
            case kReading:
                return ok ? arrive() : finish(grpc::Status::CANCELLED);
            case kWriting:
                s.writing--;
                return end();
            case kArrived:
                return;
        }
    }

    // The token before anything of the request.
    void admit() {
        auto shown = context.client_metadata().find(kCredential);
        const auto &all = s.credentials;
        if (shown != context.client_metadata().end())
            peer = static_cast<int>(
                std::find(all.begin(), all.end(),
                          std::string(shown->second.data(), shown->second.size())) - all.begin());
        if (peer < 0 || peer >= static_cast<int>(all.size()))
            return finish({grpc::StatusCode::UNAUTHENTICATED, "no token of this run"});
        wants_reply = context.method() == kAsk;
        if (context.method() == kHello) return reply({nullptr, 0, 0});
        if (!wants_reply && context.method() != kSend)
            return finish({grpc::StatusCode::UNIMPLEMENTED, "no such method"});
        stage = kReading;
        stream.Read(&request, this);
    }

    void arrive() {
        stage = kArrived;
        s.arrived.push_back(this);
    }

    void reply(const cb_iov &answer) {
        begin_write();
        stream.WriteAndFinish(s.wrap(&answer), grpc::WriteOptions(), grpc::Status::OK, this);
    }

    void finish(const grpc::Status &status) {
        begin_write();
        stream.Finish(status, this);
    }

    void begin_write() {
        stage = kWriting;
        s.writing++;
    }

    // A slot goes back only now: the answer may have been made of it.
    void end() {
        if (slot >= 0) s.free_slots.push_back(static_cast<uint32_t>(slot));
        s.serving.erase(this);
        delete this;
    }
};

void State::arm() {
    if (!closing) new Serve(*this);
}

// ---------------------------------------------------------------- the table

namespace {

int finish(void *self);

int prepare(void *self, const cb_case *c) {
    State &s = *static_cast<State *>(self);
    if (c->serves && c->nincoming < c->window * c->npeers)
        return s.refuse(-EINVAL, "grpc needs an incoming slot for each message in flight");
    for (uint32_t i = 0; i < c->npeers; i++)
        if (c->peers[i] < 0 || c->peers[i] >= static_cast<int>(s.stubs.size()) ||
            !s.stubs[c->peers[i]])
            return s.refuse(-EINVAL, "no such peer");
    s.c = c;
    s.slots.assign(c->nincoming, {});
    s.free_slots.clear();
    for (uint32_t i = c->nincoming; i-- > 0;) s.free_slots.push_back(i);
    return 0;
}

int finish(void *self) {
    State &s = *static_cast<State *>(self);
    for (Serve *call : s.arrived) call->finish(grpc::Status::CANCELLED);
    s.arrived.clear();
    for (auto &[ticket, call] : s.waiting) call->finish(grpc::Status::CANCELLED);
    s.waiting.clear();
    for (Ask *ask : s.asking) ask->context.TryCancel();
    auto quiet = [&s] {
        while (!s.done.empty()) {
            Ask *ask = s.done.front();
            s.done.pop_front();
            ask->end();
        }
        return s.asking.empty() && s.writing == 0 &&
               __atomic_load_n(&s.referring, __ATOMIC_ACQUIRE) == 0;
    };
    int rc = s.run_until(quiet, kEnding, false);
    s.c = nullptr;
    s.lent.clear();
    return rc == 1 ? 0 : s.refuse(-ETIMEDOUT, "gRPC does not let go of the last messages");
}

int post(void *self, int32_t peer, uint64_t ticket, const cb_iov *request, const cb_iov *reply) {
    State &s = *static_cast<State *>(self);
    if (peer < 0 || peer >= static_cast<int>(s.stubs.size()) || !s.stubs[peer])
        return s.refuse(-EINVAL, "no such peer");
    if (s.in_flight[peer] >= s.c->window) return -EAGAIN;
    s.ask(peer, reply ? kAsk : kSend, ticket, request, reply);
    return 0;
}

int poll_done(void *self, cb_done *done, uint32_t max, int64_t timeout_ns) {
    State &s = *static_cast<State *>(self);
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
    int rc = post(self, peer, 0, request, reply);
    if (rc < 0) return rc;
    cb_done done{};
    rc = poll_done(self, &done, 1, timeout_ns);
    if (rc == 0) return static_cast<State *>(self)->refuse(-ETIMEDOUT, "no reply in time");
    if (rc < 0) return rc;
    *reply_nbytes = done.reply_nbytes;
    return 0;
}

void reclaim(State &s) {
    s.free_slots.insert(s.free_slots.end(), s.lent.begin(), s.lent.end());
    s.lent.clear();
}

bool acceptable(const State &s) { return !s.arrived.empty() && !s.free_slots.empty(); }

// Into a slot. One-way: acknowledged at once; the slot is the application's until the next accept().
int take(State &s, Serve *call, cb_incoming *in) {
    uint64_t nbytes = call->request.Length();
    uint32_t slot = s.free_slots.back();
    if (nbytes > s.c->incoming[slot].nbytes) {
        call->finish({grpc::StatusCode::RESOURCE_EXHAUSTED, "larger than the server's slot"});
        return s.refuse(-EMSGSIZE, "a request is larger than its slot");
    }
    s.free_slots.pop_back();
    State::unwrap(call->request, &s.c->incoming[slot]);
    call->request.Clear();
    call->ticket = s.next_ticket++;
    *in = {call->ticket, call->peer, call->wants_reply, s.cut(slot, nbytes)};
    if (call->wants_reply) {
        call->slot = slot;
        s.waiting.emplace(call->ticket, call);
    } else {
        s.lent.push_back(slot);
        call->reply({nullptr, 0, 0});
    }
    return 0;
}

int accept_some(void *self, cb_incoming *in, uint32_t max, int64_t timeout_ns) {
    State &s = *static_cast<State *>(self);
    reclaim(s);
    int rc = s.run_until([&s] { return acceptable(s); }, timeout_ns);
    if (rc <= 0) return rc;
    uint32_t n = 0;
    for (; n < max && acceptable(s); n++) {
        Serve *call = s.arrived.front();
        s.arrived.pop_front();
        if ((rc = take(s, call, &in[n])) < 0) return rc;
    }
    if (!s.lent.empty())  // their acknowledgements go out before the application goes on
        s.run_until([&s] { return s.writing == 0; }, kPatience);
    return static_cast<int>(n);
}

int answer(void *self, uint64_t ticket, const cb_iov *message) {
    State &s = *static_cast<State *>(self);
    auto found = s.waiting.find(ticket);
    if (found == s.waiting.end()) return s.refuse(-EINVAL, "no such ticket to answer");
    found->second->reply(*message);
    s.waiting.erase(found);
    int rc = s.run_until([&s] { return s.writing == 0; }, kPatience);
    return rc == 0 ? s.refuse(-ETIMEDOUT, "a peer does not read its answer") : rc < 0 ? rc : 0;
}

int progress(void *self, int64_t timeout_ns) {
    State &s = *static_cast<State *>(self);
    reclaim(s);
    int rc = s.run_until([&s] { return !s.done.empty() || acceptable(s); }, timeout_ns);
    if (rc <= 0) return rc;
    return (s.done.empty() ? 0 : CB_COMPLETED) | (acceptable(s) ? CB_ARRIVED : 0);
}

const char *last_error(void *self) { return static_cast<State *>(self)->error.c_str(); }

constexpr cb_channel_ops make_ops() {
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
    return ops;
}

constexpr cb_channel_ops kOps = make_ops();

}  // namespace

// ---------------------------------------------------------------- life

Engine::Engine(const std::string &address, std::vector<std::string> credentials, int rank)
    : state_(new State) {
    State &s = *state_;
    s.engine = {COMMBENCH_ABI_VERSION, sizeof(cb_engine), &kOps, &s};
    s.credentials = std::move(credentials);
    s.rank = rank;
    std::string host = address.find(':') == std::string::npos ? address : "[" + address + "]";
    int port = 0;
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(-1).SetMaxSendMessageSize(-1);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddListeningPort(host + ":0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterAsyncGenericService(&s.service);
    s.queue = builder.AddCompletionQueue();
    s.server = builder.BuildAndStart();
    if (!s.server || port == 0) throw std::runtime_error("grpc: cannot listen on " + host);
    s.address = host + ":" + std::to_string(port);
    for (int i = 0; i < kArmed; i++) s.arm();
}

Engine::~Engine() { close(); }

std::string Engine::address() const { return state_->address; }

cb_engine *Engine::engine() { return &state_->engine; }

void Engine::connect(const std::vector<std::string> &addresses) {
    State &s = *state_;
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetMaxSendMessageSize(-1);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    s.in_flight.assign(addresses.size(), 0);
    s.stubs.resize(addresses.size());
    for (int rank = 0; rank < static_cast<int>(addresses.size()); rank++) {
        if (rank == s.rank) continue;
        s.stubs[rank] = std::make_unique<grpc::GenericStub>(grpc::CreateCustomChannel(
            addresses[rank], grpc::InsecureChannelCredentials(), arguments));
        const cb_iov empty = {nullptr, 0, 0};
        s.ask(rank, kHello, 0, &empty, nullptr);
    }
}

bool Engine::connected(double timeout_s) {
    State &s = *state_;
    s.run_until([] { return false; }, static_cast<int64_t>(timeout_s * 1e9));
    while (!s.done.empty()) {
        Ask *ask = s.done.front();
        s.done.pop_front();
        if (ask->end() < 0) throw std::runtime_error("grpc: " + s.error);
    }
    return s.asking.empty();
}

void Engine::close() {
    State &s = *state_;
    if (!s.server) return;
    finish(&s);
    s.closing = true;
    s.server->Shutdown(std::chrono::system_clock::now());
    s.stubs.clear();
    s.queue->Shutdown();
    void *tag;
    bool ok;
    while (s.queue->Next(&tag, &ok)) static_cast<Event *>(tag)->done(ok);
    for (Serve *call : s.serving) delete call;
    for (Ask *ask : s.asking) delete ask;
    s.serving.clear();
    s.asking.clear();
    s.server.reset();
}

}  // namespace grpc_cq
