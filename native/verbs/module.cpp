// commbench._verbs_core: the engine of grpc+verbs, in a module of its own as that of rdma.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>

#include <cerrno>
#include <string>

#include "../capsule.h"
#include "../rdma/attributes.h"
#include "verbs.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

class VerbsEngine {
  public:
    explicit VerbsEngine(const cb_verbs_options &options) {
        char error[256] = "";
        int code = EIO;
        e_ = cb_verbs_open(&options, error, &code);
        if (!e_) raise(code, error);
    }
    ~VerbsEngine() { cb_verbs_free(e_); }
    VerbsEngine(const VerbsEngine &) = delete;

    cb_verbs *get() { return e_; }
    void check(int rc) {
        if (rc < 0) raise(-rc, cb_verbs_engine(e_)->ops->last_error(e_));
    }
    Numbers limits() {
        const cb_verbs_limits l = cb_verbs_limits_of(e_);
        return {{"max_msg_sz", l.max_msg_sz}, {"mtu", l.active_mtu}, {"lid", l.lid}};
    }
    Numbers endpoint(uint32_t peer) {
        cb_verbs_endpoint e;
        check(cb_verbs_endpoint_of(e_, peer, &e));
        return {{"qpn", e.qpn},
                {"psn", e.psn},
                {"tx_address", e.tx.address},
                {"tx_rkey", e.tx.rkey},
                {"rx_address", e.rx.address},
                {"rx_rkey", e.rx.rkey}};
    }
    void modify(uint32_t peer, const std::string &state, const Numbers &attributes,
                const std::string &gid) {
        ibv_qp_attr a = {};
        int mask = make_attributes(a, state, attributes, gid);
        check(cb_verbs_modify(e_, peer, &a, mask));
    }
    void join(uint32_t peer, const Numbers &theirs) {
        const cb_verbs_region rx = {theirs.at("rx_address"),
                                    static_cast<uint32_t>(theirs.at("rx_rkey"))};
        check(cb_verbs_join(e_, peer, &rx));
    }
    void ping(double timeout_s) {
        int rc;
        {
            nb::gil_scoped_release release;
            rc = cb_verbs_ping(e_, static_cast<int64_t>(timeout_s * 1e9));
        }
        check(rc);
    }
    Numbers counters() {
        const cb_verbs_counters c = cb_verbs_count(e_);
#define PAIR(name) {#name, c.name},
        return {CB_VERBS_COUNTERS(PAIR)};
#undef PAIR
    }

  private:
    cb_verbs *e_ = nullptr;
};

cb_verbs_protocol protocol_of(const std::string &name) {
    if (name == "v2") return CB_VERBS_V2;
    if (name == "gdr") return CB_VERBS_GDR;
    if (name == "v1") return CB_VERBS_V1;
    throw nb::value_error(("no protocol " + name).c_str());
}

nb::bytes write_message(uint8_t type, const std::string &name, uint64_t step, uint64_t index,
                        uint64_t address, uint32_t rkey, uint64_t nbytes) {
    char buffer[8192];
    uint32_t n = cb_verbs_write_message(buffer, type, name.c_str(), step, index, address, rkey,
                                        nbytes);
    return nb::bytes(buffer, n);
}

}  // namespace

NB_MODULE(_verbs_core, m) {
    nb::set_leak_warnings(false);  // a process that ends in a hurry leaves objects behind
    m.doc() = "The engine of the grpc+verbs channel; see native/verbs/engine.c.";

    nb::class_<VerbsEngine>(m, "VerbsEngine", "A device and a queue pair for each other rank; OSError when "
                                    "it fails.")
        .def("__init__", [](VerbsEngine *self, const std::string &device, uint32_t port, uint32_t rank,
                            uint32_t size, const std::string &protocol, uint32_t depth,
                            bool spin) {
            if (rank >= size || depth < 8 || size > 1u << 24)
                throw nb::value_error("rank and depth do not fit");
            new (self) VerbsEngine({device.c_str(), port, protocol_of(protocol), rank, size, depth,
                                    spin});
        }, "device"_a, "port"_a, "rank"_a, "size"_a, nb::kw_only(), "protocol"_a, "depth"_a,
             "spin"_a)
        .def_prop_ro("capsule", [](nb::handle self) {
            return engine_capsule(cb_verbs_engine(nb::cast<VerbsEngine &>(self).get()), self);
        })
        .def_prop_ro("limits", &VerbsEngine::limits)
        .def_prop_ro("firmware", [](VerbsEngine &self) {
            return std::string(cb_verbs_limits_of(self.get()).firmware);
        })
        .def_prop_ro("sent_bytes", [](VerbsEngine &self) { return cb_verbs_sent(self.get()); })
        .def_prop_ro("regions", [](VerbsEngine &self) { return cb_verbs_regions(self.get()); })
        .def("endpoint", &VerbsEngine::endpoint, "peer"_a)
        .def("modify", &VerbsEngine::modify, "peer"_a, "state"_a, "attributes"_a, "gid"_a = "")
        .def("join", &VerbsEngine::join, "peer"_a, "endpoint"_a)
        .def("ping", &VerbsEngine::ping, "timeout_s"_a)
        .def("counters", &VerbsEngine::counters,
             "Messages sent by kind, tensors that came, bytes of payload copied.")
        .def("close", [](VerbsEngine &self) {
            nb::gil_scoped_release release;
            cb_verbs_close(self.get());
        });
    m.def("write_message", &write_message, "type"_a, "name"_a, "step"_a, "index"_a, "address"_a,
          "rkey"_a, "nbytes"_a, "A control message as it lies in a message buffer.");
}
