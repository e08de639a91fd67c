// The loops that the grpc-core channel is compared with: plain C++ on gRPC's asynchronous generic API,
// as a program would have it that does nothing else. Every function returns 0, or what went wrong.
//
// What arrives is copied from gRPC's slices into the application's buffers on both ends. What is
// sent is one slice that refers to a buffer; a message of several buffers is joined into one first,
// on every send, as a program without a gather path does.
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <sys/uio.h>
#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace {

enum { kFine, kLate, kFailed, kLength, kListen };
constexpr int kArmed = 16, kWaitSeconds = 60;
constexpr char kMethod[] = "/reference/Echo";

int64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

gpr_timespec deadline() {
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                        gpr_time_from_seconds(kWaitSeconds, GPR_TIMESPAN));
}

// One message in memory.
struct Buffers {
    std::vector<iovec> iov;
    size_t nbytes = 0;
    std::unique_ptr<char, void (*)(void *)> joined{nullptr, std::free};

    Buffers(const uint64_t *addresses, const uint64_t *lengths, int64_t n) {
        for (int64_t i = 0; i < n; i++) {
            iov.push_back({reinterpret_cast<void *>(addresses[i]), lengths[i]});
            nbytes += lengths[i];
        }
        if (n < 2) return;
        size_t whole = (nbytes + 4095) / 4096 * 4096;
        joined.reset(static_cast<char *>(std::aligned_alloc(4096, whole)));
        std::memset(joined.get(), 1, whole);
    }

    grpc::ByteBuffer to_send() {
        if (!joined) {
            grpc::Slice slice(iov[0].iov_base, nbytes, grpc::Slice::STATIC_SLICE);
            return grpc::ByteBuffer(&slice, 1);
        }
        char *to = joined.get();
        for (const iovec &v : iov) to = std::copy_n(static_cast<char *>(v.iov_base), v.iov_len, to);
        grpc::Slice slice(joined.get(), nbytes, grpc::Slice::STATIC_SLICE);
        return grpc::ByteBuffer(&slice, 1);
    }

    bool receive(const grpc::ByteBuffer &wire) {
        if (wire.Length() != nbytes || !wire.Dump(&slices_).ok()) return false;
        size_t i = 0, at = 0;
        for (const grpc::Slice &slice : slices_)
            for (size_t used = 0; used < slice.size();) {
                while (at == iov[i].iov_len) i++, at = 0;
                size_t part = std::min(slice.size() - used, iov[i].iov_len - at);
                std::memcpy(static_cast<char *>(iov[i].iov_base) + at, slice.begin() + used, part);
                used += part;
                at += part;
            }
        slices_.clear();
        return true;
    }

  private:
    std::vector<grpc::Slice> slices_;
};

// ---------------------------------------------------------------- the asking end

struct Call {
    grpc::ClientContext context;
    grpc::ByteBuffer response;
    grpc::Status status;
    std::unique_ptr<grpc::GenericClientAsyncResponseReader> reader;

    void start(grpc::GenericStub &stub, const grpc::ByteBuffer &request, grpc::CompletionQueue *q) {
        reader = stub.PrepareUnaryCall(&context, kMethod, request, q);
        reader->StartCall();
        reader->Finish(&response, &status, this);
    }
};

struct Client {
    Buffers out, in;
    grpc::CompletionQueue queue;
    std::unique_ptr<grpc::GenericStub> stub;

    int round_trip(gpr_timespec until, bool wait_for_ready = false) {
        Call call;
        call.context.set_wait_for_ready(wait_for_ready);
        call.start(*stub, out.to_send(), &queue);
        void *tag;
        bool ok;
        if (queue.AsyncNext(&tag, &ok, until) != grpc::CompletionQueue::GOT_EVENT) {
            call.context.TryCancel();  // its memory is on this stack: it has to end here
            queue.Next(&tag, &ok);
            return kLate;
        }
        if (!call.status.ok()) return kFailed;
        return in.receive(call.response) ? kFine : kLength;
    }

    int one_window(int64_t window, gpr_timespec until) {
        for (int64_t i = 0; i < window; i++) (new Call)->start(*stub, out.to_send(), &queue);
        int rc = kFine;
        for (int64_t i = 0; i < window; i++) {
            void *tag;
            bool ok;
            if (queue.AsyncNext(&tag, &ok, until) != grpc::CompletionQueue::GOT_EVENT) return kLate;
            std::unique_ptr<Call> call(static_cast<Call *>(tag));
            if (!call->status.ok()) rc = kFailed;
        }
        return rc;
    }
};

// ---------------------------------------------------------------- the serving end

struct Server;

struct Serve {
    enum { kWaiting, kReading, kWriting } stage = kWaiting;
    grpc::GenericServerContext context;
    grpc::GenericServerAsyncReaderWriter stream{&context};
    grpc::ByteBuffer request;

    explicit Serve(Server &server);
    void step(Server &server, bool ok);
};

struct Server {
    Buffers in;
    std::string credential, address;
    bool echoes;
    grpc::AsyncGenericService service;
    std::unique_ptr<grpc::ServerCompletionQueue> queue;
    std::unique_ptr<grpc::Server> server;
    int64_t served = 0;
    int writing = 0, rc = kFine;
    bool closing = false;

    int serve(int64_t count) {
        const gpr_timespec until = deadline();
        for (served = 0; (served < count || writing > 0) && rc == kFine;) {
            void *tag;
            bool ok;
            if (queue->AsyncNext(&tag, &ok, until) != grpc::CompletionQueue::GOT_EVENT)
                return kLate;
            static_cast<Serve *>(tag)->step(*this, ok);
        }
        return rc;
    }
};

Serve::Serve(Server &s) {
    s.service.RequestCall(&context, &stream, s.queue.get(), s.queue.get(), this);
}

// The token of the run first, as ours.
bool knows(const Server &server, const grpc::ServerContext &context) {
    auto agent = context.client_metadata().find("user-agent");
    return agent != context.client_metadata().end() && agent->second.starts_with(server.credential);
}

void Serve::step(Server &s, bool ok) {
    if (stage == kWriting || !ok) {
        if (stage == kWriting) s.writing--;
        else if (!s.closing) s.rc = kFailed;
        delete this;
        return;
    }
    if (stage == kWaiting) {
        new Serve(s);
        if (knows(s, context)) {
            stage = kReading;
            return stream.Read(&request, this);
        }
        stage = kWriting;
        s.writing++;
        return stream.Finish({grpc::StatusCode::UNAUTHENTICATED, "no token"}, this);
    }
    if (!s.in.receive(request)) s.rc = kLength;
    request.Clear();
    stage = kWriting;
    s.served++;
    s.writing++;
    grpc::ByteBuffer answer = s.echoes ? s.in.to_send() : grpc::ByteBuffer(nullptr, 0);
    stream.WriteAndFinish(answer, grpc::WriteOptions(), grpc::Status::OK, this);
}

}  // namespace

// ---------------------------------------------------------------- called by ctypes

extern "C" {

// Listens on a free port of `host`; "host:port" goes to address[size].
int reference_listen(void **handle, const char *host, const char *credential,
                     const uint64_t *addresses, const uint64_t *lengths, int64_t n, int64_t echoes,
                     char *address, int64_t size) {
    auto s = new Server{Buffers(addresses, lengths, n), credential, "", echoes != 0, {}, {}, {}};
    int port = 0;
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(-1).SetMaxSendMessageSize(-1);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddListeningPort(std::string(host) + ":0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterAsyncGenericService(&s->service);
    s->queue = builder.AddCompletionQueue();
    s->server = builder.BuildAndStart();
    if (!s->server || port == 0) return kListen;
    s->address = std::string(host) + ":" + std::to_string(port);
    std::strncpy(address, s->address.c_str(), static_cast<size_t>(size));
    for (int i = 0; i < kArmed; i++) new Serve(*s);
    *handle = s;
    return kFine;
}

// Connects; meanwhile the server must serve nothing else than the first round trip.
int reference_connect(void **handle, const char *address, const char *credential,
                      const uint64_t *out, const uint64_t *in, const uint64_t *lengths,
                      int64_t n, int64_t echoes) {
    auto c = new Client{Buffers(out, lengths, n), Buffers(in, lengths, echoes ? n : 0), {}, {}};
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetMaxSendMessageSize(-1);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    arguments.SetUserAgentPrefix(credential);
    c->stub = std::make_unique<grpc::GenericStub>(
        grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
    *handle = c;
    return c->round_trip(deadline(), true);
}

int reference_ping(void *handle, int64_t count, int64_t *start, int64_t *end) {
    auto c = static_cast<Client *>(handle);
    const gpr_timespec until = deadline();
    for (int64_t i = 0; i < count; i++) {
        start[i] = now_ns();
        int rc = c->round_trip(until);
        end[i] = now_ns();
        if (rc != kFine) return rc;
    }
    return kFine;
}

int reference_windows(void *handle, int64_t window, int64_t count, int64_t *start, int64_t *end) {
    auto c = static_cast<Client *>(handle);
    const gpr_timespec until = deadline();
    for (int64_t i = 0; i < count; i++) {
        start[i] = now_ns();
        int rc = c->one_window(window, until);
        end[i] = now_ns();
        if (rc != kFine) return rc;
    }
    return kFine;
}

int reference_serve(void *handle, int64_t count) {
    return static_cast<Server *>(handle)->serve(count);
}

int reference_disconnect(void *handle) {
    auto c = static_cast<Client *>(handle);
    c->stub.reset();
    c->queue.Shutdown();
    void *tag;
    bool ok;
    while (c->queue.Next(&tag, &ok)) {}
    delete c;
    return kFine;
}

int reference_unlisten(void *handle) {
    auto s = static_cast<Server *>(handle);
    s->closing = true;
    s->server->Shutdown(std::chrono::system_clock::now());
    s->queue->Shutdown();
    void *tag;
    bool ok;
    while (s->queue->Next(&tag, &ok)) static_cast<Serve *>(tag)->step(*s, false);
    s->server.reset();
    delete s;
    return kFine;
}
}
