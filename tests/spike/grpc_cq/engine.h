// A cb_channel_ops engine over gRPC C++: generic calls, one completion queue, no thread of its own.
#ifndef COMMBENCH_GRPC_CQ_H
#define COMMBENCH_GRPC_CQ_H

#include <memory>
#include <string>
#include <vector>

#include "commbench_ops.h"

namespace grpc_cq {

struct State;

// The life of an engine. All functions throw std::runtime_error; one thread at a time.
class Engine {
  public:
    // Listens on a free port of a numeric address; credentials[r] is what rank r must show.
    Engine(const std::string &address, std::vector<std::string> credentials, int rank);
    ~Engine();
    Engine(const Engine &) = delete;

    std::string address() const;    // host:port
    cb_engine *engine();

    // Collective: begin to connect to the addresses of all ranks, then let every rank call
    // connected() until it is true on each: it runs the queue for the whole of timeout_s, since
    // nobody answers a rank whose peer does not run its queue.
    void connect(const std::vector<std::string> &addresses);
    bool connected(double timeout_s);
    void close();

  private:
    std::unique_ptr<State> state_;
};

}  // namespace grpc_cq

#endif
