// Queue pair attributes by the names of commbench/channels/rdma_connect.py, for every module that has
// queue pairs.
#ifndef COMMBENCH_RDMA_ATTRIBUTES_H
#define COMMBENCH_RDMA_ATTRIBUTES_H

#include <nanobind/nanobind.h>

#include <arpa/inet.h>
#include <infiniband/verbs.h>

#include <map>
#include <string>

using Numbers = std::map<std::string, uint64_t>;

[[noreturn]] inline void raise(int code, const std::string &message) {
    PyErr_SetObject(PyExc_OSError, nanobind::make_tuple(code, message).ptr());
    throw nanobind::python_error();
}

// Where each attribute of commbench/channels/rdma_connect.py goes, and its bit in the mask.
inline int set_attribute(ibv_qp_attr &a, const std::string &name, uint64_t value) {
    if (name == "pkey_index") return a.pkey_index = static_cast<uint16_t>(value), IBV_QP_PKEY_INDEX;
    if (name == "port") return a.port_num = a.ah_attr.port_num = static_cast<uint8_t>(value), 0;
    if (name == "remote_access")
        return a.qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ,
               IBV_QP_ACCESS_FLAGS;
    if (name == "mtu")
        return a.path_mtu = static_cast<ibv_mtu>(__builtin_ctzll(value | 1u << 20) - 7),
               IBV_QP_PATH_MTU;
    if (name == "qpn") return a.dest_qp_num = static_cast<uint32_t>(value), IBV_QP_DEST_QPN;
    if (name == "rq_psn") return a.rq_psn = static_cast<uint32_t>(value), IBV_QP_RQ_PSN;
    if (name == "sq_psn") return a.sq_psn = static_cast<uint32_t>(value), IBV_QP_SQ_PSN;
    if (name == "max_dest_rd_atomic")
        return a.max_dest_rd_atomic = static_cast<uint8_t>(value), IBV_QP_MAX_DEST_RD_ATOMIC;
    if (name == "max_rd_atomic")
        return a.max_rd_atomic = static_cast<uint8_t>(value), IBV_QP_MAX_QP_RD_ATOMIC;
    if (name == "min_rnr_timer")
        return a.min_rnr_timer = static_cast<uint8_t>(value), IBV_QP_MIN_RNR_TIMER;
    if (name == "timeout") return a.timeout = static_cast<uint8_t>(value), IBV_QP_TIMEOUT;
    if (name == "retry_cnt") return a.retry_cnt = static_cast<uint8_t>(value), IBV_QP_RETRY_CNT;
    if (name == "rnr_retry") return a.rnr_retry = static_cast<uint8_t>(value), IBV_QP_RNR_RETRY;
    if (name == "sl") return a.ah_attr.sl = static_cast<uint8_t>(value), IBV_QP_AV;
    if (name == "lid") return a.ah_attr.dlid = static_cast<uint16_t>(value), IBV_QP_AV;
    if (name == "is_global") return a.ah_attr.is_global = value != 0, IBV_QP_AV;
    if (name == "gid_index")
        return a.ah_attr.grh.sgid_index = static_cast<uint8_t>(value), IBV_QP_AV;
    if (name == "traffic_class")
        return a.ah_attr.grh.traffic_class = static_cast<uint8_t>(value), IBV_QP_AV;
    if (name == "hop_limit")
        return a.ah_attr.grh.hop_limit = static_cast<uint8_t>(value), IBV_QP_AV;
    throw nanobind::value_error(("no queue pair attribute " + name).c_str());
}

// One step: the attributes of "init", "rtr" or "rts", and their mask.
inline int make_attributes(ibv_qp_attr &a, const std::string &state, const Numbers &attributes,
                           const std::string &gid) {
    int mask = IBV_QP_STATE;
    a.qp_state = state == "init" ? IBV_QPS_INIT : state == "rtr" ? IBV_QPS_RTR : IBV_QPS_RTS;
    for (const auto &[name, value] : attributes) mask |= set_attribute(a, name, value);
    if (state == "init") mask |= IBV_QP_PORT;
    if (!gid.empty() && inet_pton(AF_INET6, gid.c_str(), a.ah_attr.grh.dgid.raw) != 1)
        throw nanobind::value_error(("no GID: " + gid).c_str());
    return mask;
}

#endif
