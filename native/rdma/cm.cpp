// commbench._rdma_cm: librdmacm, for -o connect=cm. A module of its own, since not every machine has the
// library. It owns identifiers and no queue pairs: what the connection manager found out about the way
// to a peer goes to whoever has the queue pair (commbench/channels/rdma_cm.py).
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <rdma/rdma_cma.h>

#include <fcntl.h>
#include <poll.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <tuple>

#include "attributes.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Event = std::tuple<std::string, uint64_t, int, nb::bytes>;

constexpr int STEP_MS = 5000;  // to resolve an address, and a route

struct Address {
    sockaddr_storage at = {};
    sockaddr *get() { return reinterpret_cast<sockaddr *>(&at); }
};

Address parse(const std::string &text, uint16_t port) {
    Address a;
    auto *v4 = reinterpret_cast<sockaddr_in *>(&a.at);
    auto *v6 = reinterpret_cast<sockaddr_in6 *>(&a.at);
    if (inet_pton(AF_INET, text.c_str(), &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(port);
    } else if (inet_pton(AF_INET6, text.c_str(), &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons(port);
    } else {
        throw nb::value_error(("no address: " + text).c_str());
    }
    return a;
}

Numbers numbers_of(const ibv_qp_attr &a, int mask) {
    Numbers n;
    if (mask & IBV_QP_PKEY_INDEX) n["pkey_index"] = a.pkey_index;
    if (mask & IBV_QP_DEST_QPN) n["qpn"] = a.dest_qp_num;
    if (mask & IBV_QP_RQ_PSN) n["rq_psn"] = a.rq_psn;
    if (mask & IBV_QP_SQ_PSN) n["sq_psn"] = a.sq_psn;
    if (mask & IBV_QP_AV) {
        n["lid"] = a.ah_attr.dlid;
        n["sl"] = a.ah_attr.sl;
        n["is_global"] = a.ah_attr.is_global;
        n["gid_index"] = a.ah_attr.grh.sgid_index;
        n["traffic_class"] = a.ah_attr.grh.traffic_class;
        n["hop_limit"] = a.ah_attr.grh.hop_limit;
    }
    return n;
}

class Connector {
  public:
    Connector(const std::string &address, int backlog) : address_(address) {
        Address here = parse(address, 0);
        events_ = rdma_create_event_channel();
        if (!events_) raise(errno, std::string("librdmacm gives no events: ") + strerror(errno));
        fcntl(events_->fd, F_SETFL, fcntl(events_->fd, F_GETFL) | O_NONBLOCK);
        if (rdma_create_id(events_, &listener_, nullptr, RDMA_PS_TCP) ||
            rdma_bind_addr(listener_, here.get()) || rdma_listen(listener_, backlog)) {
            int code = errno;
            close();
            raise(code, "rdma_cm cannot listen on " + address + ": " + strerror(code));
        }
    }
    ~Connector() { close(); }
    Connector(const Connector &) = delete;

    uint16_t port() const { return listener_ ? ntohs(rdma_get_src_port(listener_)) : 0; }
    std::string device() const {
        return listener_ && listener_->verbs ? ibv_get_device_name(listener_->verbs->device) : "";
    }

    uint64_t resolve(const std::string &address, uint16_t port) {
        rdma_cm_id *id = nullptr;
        Address here = parse(address_, 0), there = parse(address, port);
        if (!listener_) raise(EBADF, "rdma_cm is closed");
        uint64_t handle = ++last_;
        check(rdma_create_id(events_, &id, context(handle), RDMA_PS_TCP), "creates no identifier");
        ids_[handle] = id;
        check(rdma_resolve_addr(id, here.get(), there.get(), STEP_MS), "finds no address");
        return handle;
    }
    void resolve_route(uint64_t id) {
        check(rdma_resolve_route(at(id), STEP_MS), "finds no route");
    }
    void connect(uint64_t id, const nb::bytes &said, uint32_t qpn, const Numbers &reads) {
        rdma_conn_param p = parameters(said, qpn, reads);
        check(rdma_connect(at(id), &p), "does not connect");
    }
    void accept(uint64_t id, const nb::bytes &said, uint32_t qpn, const Numbers &reads) {
        rdma_conn_param p = parameters(said, qpn, reads);
        check(rdma_accept(at(id), &p), "does not accept");
    }
    void establish(uint64_t id) { check(rdma_establish(at(id)), "does not connect"); }
    void reject(uint64_t id) {
        rdma_reject(at(id), nullptr, 0);
        forget(id);
    }
    void forget(uint64_t id) {
        auto found = ids_.find(id);
        if (found == ids_.end()) return;
        rdma_destroy_id(found->second);
        ids_.erase(found);
    }
    std::pair<Numbers, std::string> attributes(uint64_t id, const std::string &state) {
        ibv_qp_attr a = {};
        int mask = 0;
        char gid[INET6_ADDRSTRLEN] = "";
        a.qp_state = state == "init" ? IBV_QPS_INIT : state == "rtr" ? IBV_QPS_RTR : IBV_QPS_RTS;
        check(rdma_init_qp_attr(at(id), &a, &mask), "has no attributes for a queue pair");
        if ((mask & IBV_QP_AV) && a.ah_attr.is_global)
            inet_ntop(AF_INET6, a.ah_attr.grh.dgid.raw, gid, sizeof gid);
        return {numbers_of(a, mask), gid};
    }

    std::optional<Event> next(double timeout_s) {
        if (!events_) raise(EBADF, "rdma_cm is closed");
        pollfd p = {events_->fd, POLLIN, 0};
        {
            nb::gil_scoped_release release;
            poll(&p, 1, static_cast<int>(timeout_s * 1000));
        }
        rdma_cm_event *event = nullptr;
        if (rdma_get_cm_event(events_, &event)) return std::nullopt;
        if (event->event == RDMA_CM_EVENT_CONNECT_REQUEST) {
            uint64_t handle = ++last_;
            event->id->context = context(handle);
            ids_[handle] = event->id;
        }
        auto id = reinterpret_cast<uint64_t>(event->id->context);
        const char *data = static_cast<const char *>(event->param.conn.private_data);
        size_t nbytes = data ? event->param.conn.private_data_len : 0;
        std::string name = rdma_event_str(event->event);
        Event told(name.substr(name.rfind("EVENT_") + 6), id, event->status, nb::bytes(data, nbytes));
        rdma_ack_cm_event(event);
        return told;
    }

    void close() {
        while (!ids_.empty()) forget(ids_.begin()->first);
        if (listener_) rdma_destroy_id(listener_);
        if (events_) rdma_destroy_event_channel(events_);
        listener_ = nullptr;
        events_ = nullptr;
    }

  private:
    static void *context(uint64_t handle) { return reinterpret_cast<void *>(handle); }
    static void check(int rc, const char *what) {
        int code = errno;
        if (rc) raise(code, std::string("rdma_cm ") + what + ": " + strerror(code));
    }
    rdma_cm_id *at(uint64_t id) {
        auto found = ids_.find(id);
        if (found == ids_.end()) raise(EINVAL, "rdma_cm has no such identifier");
        return found->second;
    }
    static rdma_conn_param parameters(const nb::bytes &said, uint32_t qpn, const Numbers &n) {
        rdma_conn_param p = {};
        p.private_data = said.c_str();
        p.private_data_len = static_cast<uint8_t>(said.size());
        p.responder_resources = static_cast<uint8_t>(n.at("max_dest_rd_atomic"));
        p.initiator_depth = static_cast<uint8_t>(n.at("max_rd_atomic"));
        p.retry_count = static_cast<uint8_t>(n.at("retry_cnt"));
        p.rnr_retry_count = static_cast<uint8_t>(n.at("rnr_retry"));
        p.qp_num = qpn;
        return p;
    }

    std::string address_;
    rdma_event_channel *events_ = nullptr;
    rdma_cm_id *listener_ = nullptr;
    std::map<uint64_t, rdma_cm_id *> ids_;
    uint64_t last_ = 0;
};

}  // namespace

NB_MODULE(_rdma_cm, m) {
    nb::set_leak_warnings(false);  // a process that ends in a hurry leaves objects behind
    m.doc() = "Connecting by librdmacm; see commbench/channels/rdma_cm.py.";

    nb::class_<Connector>(m, "Connector", "Listens on an address of an RDMA device; connections are "
                                          "told apart by numbers. OSError when something fails.")
        .def(nb::init<const std::string &, int>(), "address"_a, "backlog"_a)
        .def_prop_ro("port", &Connector::port)
        .def_prop_ro("device", &Connector::device, "Which one has the address.")
        .def("resolve", &Connector::resolve, "address"_a, "port"_a)
        .def("resolve_route", &Connector::resolve_route, "id"_a)
        .def("connect", &Connector::connect, "id"_a, "said"_a, "qpn"_a, "attributes"_a)
        .def("accept", &Connector::accept, "id"_a, "said"_a, "qpn"_a, "attributes"_a)
        .def("establish", &Connector::establish, "id"_a)
        .def("reject", &Connector::reject, "id"_a)
        .def("forget", &Connector::forget, "id"_a)
        .def("attributes", &Connector::attributes, "id"_a, "state"_a,
             "What a step of the queue pair needs to know of the path, and the peer's GID.")
        .def("next", &Connector::next, "timeout_s"_a,
             "The next event: name, id, status, what the peer said with it.")
        .def("close", &Connector::close);
}
