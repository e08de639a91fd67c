// The engine of tcp, uds and ipoib for Python.
#include "bind.h"

#include <new>

namespace {

struct Tcp {
    cb_engine *engine;
    Tcp(const std::vector<int> &ask, const std::vector<int> &serve, bool spin) {
        if (ask.size() != serve.size()) throw nb::value_error("ask and serve: one socket per rank");
        engine = cb_tcp_open(static_cast<uint32_t>(ask.size()), ask.data(), serve.data(), spin);
        if (!engine) throw std::bad_alloc();
    }
    Tcp(const Tcp &) = delete;
    ~Tcp() { cb_tcp_close(engine); }
};

}  // namespace

void bind_tcp(nb::module_ &m) {
    nb::class_<Tcp>(m, "TcpEngine", "Connected stream sockets by rank, -1: none; native/tcp.c.")
        .def(nb::init<const std::vector<int> &, const std::vector<int> &, bool>(), nb::arg("ask"),
             nb::arg("serve"), nb::arg("spin"))
        .def_prop_ro("capsule", [](nb::handle self) {
            return engine_capsule(nb::cast<Tcp &>(self).engine, self);
        });
}
