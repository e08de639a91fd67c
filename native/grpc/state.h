// What the parts of the gRPC engine share: its state, the completion queue, calls in both directions.
//
//  - One ServerCompletionQueue carries the calls of both directions, so that progress() can wait
//    for completions and arrivals at once. Nothing moves while nobody runs it, so answer() runs it
//    until the answer is out: the application may turn to other things afterwards.
//  - A message is a ByteBuffer with a slice for each buffer. Large slices refer to the application's
//    memory and are counted, so that finish() knows when gRPC has let go of all of them.
//  - A request is copied into a slot as soon as it has arrived, while it is in the cache, or when one
//    is free; a reply when poll() hands it out.
#ifndef COMMBENCH_GRPC_STATE_H
#define COMMBENCH_GRPC_STATE_H

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "codec.h"
#include "engine.h"

namespace commbench {

constexpr int64_t kSecond = 1'000'000'000;      // ns
constexpr int64_t kLook = kSecond / 20;         // between two looks at the stop flag
constexpr int64_t kPatience = 60 * kSecond;     // for an answer that nobody reads
extern const char kAsk[], kSend[], kHello[];    // methods

int64_t now_ns();
gpr_timespec at_ns(int64_t monotonic_ns);

// What the completion queue hands back.
struct Event {
    virtual ~Event() = default;
    virtual void done(bool ok) = 0;
    size_t place = 0;                           // in Calls
};

// All calls of one kind; each knows its place, so that none needs memory of the set's own.
template <class T> class Calls {
  public:
    void add(T *call) {
        call->place = all_.size();
        all_.push_back(call);
    }
    void drop(T *call) {
        all_.back()->place = call->place;
        all_[call->place] = all_.back();
        all_.pop_back();
    }
    bool empty() const { return all_.empty(); }
    const std::vector<T *> &all() const { return all_; }

  private:
    std::vector<T *> all_;
};

// The connections to one rank, taken in turn.
struct Peer {
    std::vector<std::unique_ptr<grpc::GenericStub>> stubs;
    size_t next = 0;
    uint32_t in_flight = 0;
    std::string address;
};

struct State;

// One call out.
struct Ask final : Event {
    State &s;
    const int peer;
    const uint64_t ticket;
    const cb_iov *const reply;                  // null: one-way
    const bool hello;
    grpc::ClientContext context;
    grpc::ByteBuffer response;
    grpc::Status status;
    std::unique_ptr<grpc::GenericClientAsyncResponseReader> call;

    Ask(State &s, int peer, uint64_t ticket, const cb_iov *reply, bool hello = false)
        : s(s), peer(peer), ticket(ticket), reply(reply), hello(hello) {}
    void start(grpc::GenericStub &stub, const char *method, const grpc::ByteBuffer &request);
    void done(bool) override;
    // Bytes of the reply, or -errno with the state's error. The call is gone afterwards.
    int64_t end();
};

// One call in, from before it comes until its answer is out.
struct Serve final : Event {
    enum { kWaiting, kReading, kArrived, kWriting } stage = kWaiting;
    State &s;
    int peer = -1;
    bool wants_reply = false;
    int64_t slot = -1;                          // until the answer is out
    grpc::GenericServerContext context;
    grpc::GenericServerAsyncReaderWriter stream{&context};
    grpc::ByteBuffer request;

    explicit Serve(State &s);
    void done(bool ok) override;
    void admit();
    void reply(const cb_iov &answer);
    void finish(const grpc::Status &status);

  private:
    void begin_write();
    void end();
};

struct State {
    cb_engine engine{};
    Setup setup;
    std::string address, error = "no error";
    std::unique_ptr<Codec> codec;
    std::map<std::string, int, std::less<>> ranks;  // by credential
    Engine::Paths came, went;

    grpc::AsyncGenericService service;
    std::unique_ptr<grpc::ServerCompletionQueue> queue;
    std::unique_ptr<grpc::Server> server;
    std::vector<Peer> peers;                    // by rank; no stubs: this one

    const cb_case *c = nullptr;
    std::vector<std::vector<iovec>> cuts;       // by slot: its memory, cut to what arrived
    std::vector<uint32_t> free_slots, lent;     // lent: one-way, handed out by the last accept()
    std::vector<Serve *> waiting;               // for their answer; a ticket is a slot's number
    Calls<Ask> asking;
    Calls<Serve> serving;
    std::deque<Ask *> done;
    std::deque<Serve *> arrived;                // waiting for a free slot
    std::deque<cb_incoming> delivered;          // waiting for accept()
    int failure = 0;                            // of a delivery: -errno, for who calls next
    int writing = 0;                            // answers that are not out yet
    bool closing = false;

    int refuse(int code, const std::string &why) {
        error = why;
        return code;
    }
    std::string name(int rank) const {
        return "rank " + std::to_string(rank) + " on " + setup.hosts[rank];
    }
    // Of decode(): what the rank's message is not.
    int misfit(int rank, const char *what, int64_t code) {
        const char *why = code == -EBADMSG ? " is no protobuf Payload" : " does not fit its slot";
        return refuse(static_cast<int>(code), name(rank) + ": its " + what + why);
    }
    Peer *peer(int rank) {
        bool known = rank >= 0 && rank < static_cast<int>(peers.size());
        return known && !peers[rank].stubs.empty() ? &peers[rank] : nullptr;
    }
    bool stopped() const { return c && __atomic_load_n(c->stop, __ATOMIC_RELAXED) != 0; }
    void arm() {
        if (!closing) new Serve(*this);
    }

    void deliver();

    // Handles one event, if there is one before the deadline.
    void step(int64_t deadline_ns) {
        void *tag;
        bool ok;
        if (queue->AsyncNext(&tag, &ok, at_ns(deadline_ns)) == grpc::CompletionQueue::GOT_EVENT)
            static_cast<Event *>(tag)->done(ok);
    }

    // 1 when `ready`, 0 when it did not come true in time, -ECANCELED.
    template <class Ready>
    int run_until(Ready ready, int64_t timeout_ns, bool stoppable = true) {
        if (ready()) return 1;
        int64_t now = now_ns(), deadline = now + timeout_ns;
        for (;;) {
            step(std::min(deadline, now + kLook));
            if (ready()) return 1;
            if (stoppable && failure < 0) return failure;
            if (stoppable && stopped()) return refuse(-ECANCELED, "the run was stopped");
            if ((now = now_ns()) >= deadline) return 0;
        }
    }

    // Ends what is in flight and drops the connections, for gRPC still refers to our memory.
    void disconnect();
};

cb_channel_ops make_ops();
int finish(void *self);

}  // namespace commbench

#endif
