// What the loops of module.cpp and bind_broker.cpp run on: a stop flag, slots, a case made ready.
#ifndef COMMBENCH_PREPARED_H
#define COMMBENCH_PREPARED_H

#include "bind.h"

#include <cstddef>
#include <utility>

using Addresses = std::vector<std::pair<uintptr_t, size_t>>;

struct StopFlag {
    int32_t value = 0;
    void set() { __atomic_store_n(&value, 1, __ATOMIC_RELEASE); }
    void clear() { __atomic_store_n(&value, 0, __ATOMIC_RELEASE); }
    bool is_set() const { return __atomic_load_n(&value, __ATOMIC_ACQUIRE) != 0; }
};

// Messages in memory as C sees them; the Python objects that own the memory are kept alive.
struct Slots {
    std::vector<std::vector<iovec>> iovecs;
    std::vector<cb_iov> messages;
    nb::object owner;

    Slots(const std::vector<Addresses> &slots, nb::object owner_) : owner(std::move(owner_)) {
        for (const Addresses &buffers : slots) {
            std::vector<iovec> iov;
            uint64_t nbytes = 0;
            for (auto [address, length] : buffers) {
                iov.push_back({reinterpret_cast<void *>(address), length});
                nbytes += length;
            }
            iovecs.push_back(std::move(iov));
            messages.push_back({nullptr, static_cast<uint32_t>(buffers.size()), nbytes});
        }
        for (size_t i = 0; i < messages.size(); i++) messages[i].iov = iovecs[i].data();
    }
    Slots(const Slots &) = delete;

    const cb_iov &at(size_t i) const {
        if (i >= messages.size()) throw nb::index_error("no such slot");
        return messages[i];
    }
    uint32_t size() const { return static_cast<uint32_t>(messages.size()); }
};

inline cb_engine *engine_of(nb::handle capsule) {
    auto *engine = static_cast<cb_engine *>(PyCapsule_GetPointer(capsule.ptr(), COMMBENCH_CAPSULE));
    if (!engine) throw nb::python_error();
    if (engine->abi_version != COMMBENCH_ABI_VERSION)
        throw nb::value_error("the engine was built for another version of the ABI");
    return engine;
}

// One prepare() .. finish(): the case, and an engine that was told of it.
struct Prepared {
    cb_case c{};
    std::vector<int32_t> peers;
    nb::object keep;
    cb_engine *engine;

    Prepared(nb::object capsule, std::vector<int32_t> peers_, uint32_t window,
             uint32_t reply_every, bool asks, bool serves, nb::object request, nb::object reply,
             nb::object incoming, uint64_t answer_nbytes, nb::object stop, uint32_t ncalls)
        : peers(std::move(peers_)),
          keep(nb::make_tuple(capsule, request, reply, incoming, stop)),
          engine(engine_of(capsule)) {
        auto &req = nb::cast<Slots &>(request), &rep = nb::cast<Slots &>(reply),
             &inc = nb::cast<Slots &>(incoming);
        c.struct_size = sizeof c;
        c.window = window;
        c.peers = peers.data();
        c.npeers = static_cast<uint32_t>(peers.size());
        c.reply_every = reply_every;
        c.asks = asks;
        c.serves = serves;
        c.request = req.messages.data();
        c.nrequest = req.size();
        c.reply = rep.messages.data();
        c.nreply = rep.size();
        c.incoming = inc.messages.data();
        c.nincoming = inc.size();
        c.answer_nbytes = answer_nbytes;
        c.stop = &nb::cast<StopFlag &>(stop).value;
        c.ncalls = ncalls;
        call(engine->ops->prepare(engine->self, &c));
    }
    Prepared(const Prepared &) = delete;
    ~Prepared() { if (engine) engine->ops->finish(engine->self); }

    void finish() {
        cb_engine *e = std::exchange(engine, nullptr);
        if (!e) return;
        int rc;
        {
            nb::gil_scoped_release release;
            rc = e->ops->finish(e->self);
        }
        if (rc < 0) fail(rc, e->ops->last_error(e->self));
    }
    void call(int rc) {
        if (rc >= 0) return;
        std::string why = engine->ops->last_error(engine->self);
        engine = nullptr;
        fail(rc, why.c_str());
    }
    // What the engine has copied so far; 0 where it does not count.
    uint64_t copied() const {
        const cb_channel_ops *ops = engine ? engine->ops : nullptr;
        bool counts = ops && ops->struct_size > offsetof(cb_channel_ops, copied) && ops->copied;
        return counts ? ops->copied(engine->self) : 0;
    }
    [[noreturn]] static void fail(int rc, const char *why) {
        PyObject *args = Py_BuildValue("(is)", -rc, why);
        PyErr_SetObject(PyExc_OSError, args);
        Py_XDECREF(args);
        throw nb::python_error();
    }
};

#endif
