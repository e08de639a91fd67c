// A cb_channel_ops engine over gRPC C++: generic calls, one completion queue, no thread of its own.
#ifndef COMMBENCH_GRPC_ENGINE_H
#define COMMBENCH_GRPC_ENGINE_H

#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "commbench_ops.h"

namespace commbench {

struct State;

using Argument = std::pair<std::string, std::variant<int, std::string>>;

struct Setup {
    std::string address;                    // numeric; listens on a free port of it
    std::vector<std::string> credentials;   // [r]: what rank r shows
    std::vector<std::string> hosts;         // [r]: where rank r is, for messages
    int rank;
    bool serialized;
    int channels;                           // connections to each rank
    std::vector<Argument> arguments;        // of channels and server
};

// The life of an engine. All functions throw std::runtime_error; one thread at a time.
class Engine {
  public:
    explicit Engine(Setup setup);
    ~Engine();
    Engine(const Engine &) = delete;

    std::string address() const;            // host:port
    cb_engine *engine();

    // Collective: begin to connect to the addresses of all ranks, then let every rank call
    // connected() until it is true on each: it runs the queue for the whole of timeout_s, since
    // nobody answers a rank whose peer does not run its queue.
    void connect(const std::vector<std::string> &addresses);
    bool connected(double timeout_s);

    // (rank, peer) of each connection: of those that came, as its calls show it ("ipv4:host:port"),
    // and of those that were made.
    using Paths = std::vector<std::pair<int, std::string>>;
    const Paths &came() const;
    const Paths &went() const;

    void close();

  private:
    std::unique_ptr<State> state_;
};

}  // namespace commbench

#endif
