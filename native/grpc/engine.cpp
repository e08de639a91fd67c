// The gRPC engine's life: listening, connecting, closing.
#include "engine.h"

#include <stdexcept>

#include "state.h"

namespace commbench {

namespace {

constexpr int kArmed = 16;                  // calls that the server waits for
constexpr int64_t kHelloSeconds = 10;       // until each rank must have been reached
const cb_channel_ops kOps = make_ops();

gpr_timespec seconds_from_now(int64_t seconds) { return at_ns(now_ns() + seconds * kSecond); }

void listen(State &s, const std::string &host) {
    int port = 0;
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(-1).SetMaxSendMessageSize(-1);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    for (const auto &[key, value] : s.setup.arguments)
        std::visit([&builder, &key = key](const auto &v) { builder.AddChannelArgument(key, v); },
                   value);
    builder.AddListeningPort(host + ":0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterAsyncGenericService(&s.service);
    s.queue = builder.AddCompletionQueue();
    s.server = builder.BuildAndStart();
    if (!s.server || port == 0) throw std::runtime_error("cannot listen on " + host);
    s.address = host + ":" + std::to_string(port);
    for (int i = 0; i < kArmed; i++) s.arm();
}

grpc::ChannelArguments arguments_of(const Setup &setup) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetMaxSendMessageSize(-1);
    for (const auto &[key, value] : setup.arguments)
        if (auto number = std::get_if<int>(&value)) arguments.SetInt(key, *number);
        else arguments.SetString(key, std::get<std::string>(value));
    // Connections of their own, to the addresses given and by no other way.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    arguments.SetUserAgentPrefix(setup.credentials[setup.rank]);
    return arguments;
}

void greet(State &s, int rank, grpc::GenericStub &stub) {
    Ask *ask = new Ask(s, rank, 0, nullptr, true);
    ask->context.set_wait_for_ready(true);
    ask->context.set_deadline(seconds_from_now(kHelloSeconds));
    ask->start(stub, kHello, s.codec->encode({nullptr, 0, 0}));
}

}  // namespace

int64_t now_ns() {
    gpr_timespec t = gpr_now(GPR_CLOCK_MONOTONIC);
    return t.tv_sec * kSecond + t.tv_nsec;
}

gpr_timespec at_ns(int64_t monotonic_ns) {
    gpr_timespec t;
    t.tv_sec = monotonic_ns / kSecond;
    t.tv_nsec = static_cast<int32_t>(monotonic_ns % kSecond);
    t.clock_type = GPR_CLOCK_MONOTONIC;
    return t;
}

Engine::Engine(Setup setup) : state_(new State) {
    State &s = *state_;
    s.engine = {COMMBENCH_ABI_VERSION, sizeof(cb_engine), &kOps, &s};
    s.setup = std::move(setup);
    s.codec = make_codec(s.setup.serialized);
    for (size_t rank = 0; rank < s.setup.credentials.size(); rank++)
        s.ranks.emplace(s.setup.credentials[rank], static_cast<int>(rank));
    const std::string &address = s.setup.address;
    listen(s, address.find(':') == std::string::npos ? address : "[" + address + "]");
}

Engine::~Engine() { close(); }

std::string Engine::address() const { return state_->address; }

cb_engine *Engine::engine() { return &state_->engine; }

const Engine::Paths &Engine::came() const { return state_->came; }

const Engine::Paths &Engine::went() const { return state_->went; }

void Engine::connect(const std::vector<std::string> &addresses) {
    State &s = *state_;
    const grpc::ChannelArguments arguments = arguments_of(s.setup);
    s.peers.resize(addresses.size());
    for (int rank = 0; rank < static_cast<int>(addresses.size()); rank++)
        for (int i = 0; rank != s.setup.rank && i < s.setup.channels; i++) {
            auto channel = grpc::CreateCustomChannel(addresses[rank],
                                                     grpc::InsecureChannelCredentials(), arguments);
            s.peers[rank].stubs.push_back(std::make_unique<grpc::GenericStub>(channel));
            greet(s, rank, *s.peers[rank].stubs.back());
        }
}

bool Engine::connected(double timeout_s) {
    State &s = *state_;
    s.run_until([] { return false; }, static_cast<int64_t>(timeout_s * 1e9));
    while (!s.done.empty()) {
        Ask *ask = s.done.front();
        s.done.pop_front();
        if (ask->end() < 0) throw std::runtime_error(s.error);
    }
    return s.asking.empty();
}

void State::disconnect() {
    closing = true;
    for (Peer &peer : peers) peer.stubs.clear();
    if (server) server->Shutdown(std::chrono::system_clock::now());
    run_until([this] { return serving.empty() && codec->referring() == 0; }, kSecond, false);
}

void Engine::close() {
    State &s = *state_;
    if (!s.server) return;
    finish(&s);
    s.disconnect();
    s.queue->Shutdown();
    void *tag;
    bool ok;
    while (s.queue->Next(&tag, &ok)) static_cast<Event *>(tag)->done(ok);
    while (!s.serving.empty()) {
        Serve *call = s.serving.all().back();
        s.serving.drop(call);
        delete call;
    }
    s.server.reset();
}

}  // namespace commbench
