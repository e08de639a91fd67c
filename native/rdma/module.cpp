// commbench._rdma_core: a module of its own, since not every machine has libibverbs. Its engine goes
// to the loops of commbench._native as a capsule.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "../capsule.h"
#include "adapt.h"
#include "attributes.h"
#include "rdma.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

cb_rdma_op op_named(const std::string &name) {
    const std::map<std::string, cb_rdma_op> ops = {{"send", CB_RDMA_SEND},
                                                   {"write", CB_RDMA_WRITE},
                                                   {"write-imm", CB_RDMA_WRITE_IMM},
                                                   {"read", CB_RDMA_READ}};
    auto found = ops.find(name);
    if (found == ops.end()) throw nb::value_error(("no op " + name).c_str());
    return found->second;
}

class Engine {
  public:
    explicit Engine(const cb_rdma_options &options) {
        char error[256] = "";
        int code = EIO;
        r_ = cb_rdma_open(&options, error, &code);
        if (!r_) raise(code, error);
    }
    ~Engine() { cb_rdma_free(r_); }
    Engine(const Engine &) = delete;

    cb_rdma *get() { return r_; }
    void close() { cb_rdma_close(r_); }
    void check(int rc) {
        if (rc < 0) raise(-rc, cb_rdma_engine(r_)->ops->last_error(r_));
    }
    Numbers limits() {
        const cb_rdma_limits *l = cb_rdma_limits_of(get());
        return {{"max_sge", l->max_sge},       {"max_inline", l->max_inline},
                {"max_msg_sz", l->max_msg_sz}, {"max_rd_atomic", l->max_rd_atomic},
                {"mtu", l->active_mtu},        {"lid", l->lid},
                {"state", l->state}};
    }
    Numbers endpoint(uint32_t peer) {
        cb_rdma_endpoint e;
        check(cb_rdma_endpoint_of(get(), peer, &e));
        return {{"qpn", e.qpn},
                {"psn", e.psn},
                {"ring_rkey", e.ring_rkey},
                {"ring_depth", e.ring_depth},
                {"ring_stride", e.ring_stride},
                {"ring_address", e.ring_address}};
    }
    void modify(uint32_t peer, const std::string &state, const Numbers &attributes,
                const std::string &gid) {
        ibv_qp_attr a = {};
        int mask = make_attributes(a, state, attributes, gid);
        check(cb_rdma_modify(get(), peer, &a, mask));
    }
    void join(uint32_t peer, const Numbers &t) {
        cb_rdma_endpoint e = {};
        e.qpn = static_cast<uint32_t>(t.at("qpn"));
        e.ring_rkey = static_cast<uint32_t>(t.at("ring_rkey"));
        e.ring_depth = static_cast<uint32_t>(t.at("ring_depth"));
        e.ring_stride = static_cast<uint32_t>(t.at("ring_stride"));
        e.ring_address = t.at("ring_address");
        check(cb_rdma_join(get(), peer, &e));
    }
    void settle(const std::vector<int32_t> &peers, double timeout_s) {
        int rc;
        cb_rdma *r = get();
        {
            nb::gil_scoped_release release;
            rc = cb_rdma_settle(r, peers.data(), static_cast<uint32_t>(peers.size()),
                                static_cast<int64_t>(timeout_s * 1e9));
        }
        check(rc);
    }

  private:
    cb_rdma *r_ = nullptr;
};

}  // namespace

NB_MODULE(_rdma_core, m) {
    nb::set_leak_warnings(false);  // a process that ends in a hurry leaves objects behind
    m.doc() = "The engine of the rdma channel; see native/rdma/wire.h.";

    nb::class_<adapter>(m, "Adapter", "Eager or rendezvous, see native/rdma/adapt.h; for tests.")
        .def("__init__", [](adapter *self, uint64_t from) { *(new (self) adapter{}) = {from, {}}; },
             "start"_a)
        .def("rendezvous", [](adapter &self, uint64_t nbytes, uint64_t most) {
            return choose(&self, nbytes, most) == RENDEZVOUS;
        }, "nbytes"_a, "most"_a, "Does the next message take it?")
        .def("learn", [](adapter &self, uint64_t nbytes, bool rendezvous, double ns) {
            learn(&self, nbytes, rendezvous ? RENDEZVOUS : EAGER, ns);
        }, "nbytes"_a, "rendezvous"_a, "ns"_a)
        .def_prop_ro("threshold", [](adapter &self) { return threshold(&self); });

    nb::class_<Engine>(m, "Engine", "A device and a queue pair for each other rank; OSError when "
                                    "it fails.")
        .def("__init__", [](Engine *self, const std::string &device, uint32_t port, uint32_t rank,
                            uint32_t size, const std::string &op, uint32_t eager_max,
                            uint32_t inline_max, uint32_t tx_depth, uint32_t rx_depth,
                            uint32_t signal_every, bool spin, bool srq, uint32_t chunk,
                            uint32_t coalesce, bool adaptive) {
            if (rank >= size || tx_depth < 2 || signal_every < 1 || signal_every > tx_depth / 2 ||
                rx_depth < 16 || (rx_depth & (rx_depth - 1)))
                throw nb::value_error("rank, depths and signalling do not fit");
            if (srq && op != "send" && op != "read")
                throw nb::value_error("a shared receive queue takes what is sent, not written");
            new (self) Engine({device.c_str(), port, rank, size, op_named(op), eager_max,
                               inline_max, tx_depth, rx_depth, signal_every, spin, srq, chunk,
                               coalesce, adaptive});
        }, "device"_a, "port"_a, "rank"_a, "size"_a, nb::kw_only(), "op"_a, "eager_max"_a,
           "inline_max"_a, "tx_depth"_a, "rx_depth"_a, "signal_every"_a, "spin"_a, "srq"_a = false,
           "chunk"_a = 0, "coalesce"_a = 0, "adaptive"_a = false)
        .def_prop_ro("capsule", [](nb::handle self) {
            return engine_capsule(cb_rdma_engine(nb::cast<Engine &>(self).get()), self);
        })
        .def_prop_ro("limits", &Engine::limits)
        .def_prop_ro("firmware", [](Engine &self) {
            return std::string(cb_rdma_limits_of(self.get())->firmware);
        })
        .def_prop_ro("sent_bytes", [](Engine &self) { return cb_rdma_sent(self.get()); })
        .def_prop_ro("regions", [](Engine &self) { return cb_rdma_regions(self.get()); })
        .def("threshold", [](Engine &self, uint32_t peer) {
            return cb_rdma_threshold(self.get(), peer);
        }, "peer"_a, "Bytes from which on messages to this peer take the rendezvous.")
        .def("endpoint", &Engine::endpoint, "peer"_a)
        .def("modify", &Engine::modify, "peer"_a, "state"_a, "attributes"_a, "gid"_a = "")
        .def("join", &Engine::join, "peer"_a, "endpoint"_a)
        .def("settle", &Engine::settle, "peers"_a, "timeout_s"_a)
        .def("close", &Engine::close);
}
